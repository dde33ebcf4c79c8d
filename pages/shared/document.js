// Two things about the document that Streamlit leaves as they are.

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
}
