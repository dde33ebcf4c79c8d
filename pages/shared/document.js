// What Streamlit leaves as it is in the document around the pages.

const STYLE = `
[data-testid="stBaseButton-primary"], [data-testid="stBaseButton-primary"] p { color: light-dark(#ffffff, #04211d); }
`;

export default function ({ data, parentElement }) {
  // Screen readers read the page in its language.
  document.documentElement.lang = data.language;

  // A choice on a page rewrites its address instead of adding a step to the history, so that Back leads to the page before.
  if (!history.tracinPush) {
    history.tracinPush = history.pushState;
    history.pushState = function (state, title, url) {
      const here = url == null || new URL(url, location.href).pathname === location.pathname;
      return here ? this.replaceState(state, title, url) : this.tracinPush(state, title, url);
    };
  }

  // Text on the dark theme's bright buttons is dark enough to be read.
  if (!document.getElementById("tracin-style")) {
    const style = document.createElement("style");
    style.id = "tracin-style";
    style.textContent = STYLE;
    document.head.append(style);
  }

  // The list of pages has headings among its entries, so it is no list to a screen reader; its links say themselves what they are.
  if (!window.tracinPages) {
    const plain = () => {
      for (const part of document.querySelectorAll("ul[data-testid=stSidebarNavItems]:not([role]), ul[data-testid=stSidebarNavItems] li:not([role])")) {
        part.setAttribute("role", "none");
      }
    };
    window.tracinPages = new MutationObserver(plain);
    window.tracinPages.observe(document.body, { childList: true, subtree: true });
    plain();
  }
}
