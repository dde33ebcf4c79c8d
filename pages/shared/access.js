// The key of a link stands behind the `#`. It leaves the address bar first, and then goes to the server once, in a form.
const enter = () => {
  const key = location.pathname === "/enter" ? location.hash.slice(1) : "";
  if (!key) return;
  history.replaceState(null, "", location.pathname);
  const said = document.getElementById("said");
  said.textContent = said.dataset.wait;
  const form = document.getElementById("entrance");
  form.elements.key.value = key;
  form.submit();
};
addEventListener("hashchange", enter);
enter();
