// Renders the equations that pymdownx.arithmatex has marked, by the KaTeX files beside this one.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim().slice(2, -2);
    katex.render(source, element, { displayMode: element.tagName === "DIV", throwOnError: false });
  }
});
