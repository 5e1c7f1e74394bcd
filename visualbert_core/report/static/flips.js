// The only script of the page, and only on pages with flips. It shows the flips that fit the filter, 24 at a time. Without
// it, all flips are shown and the filter is hidden. The content security policy allows this script by its digest.
"use strict";
const form = document.getElementById("filter"), more = document.getElementById("more");
const flips = [...document.querySelectorAll(".flips figure")];
const texts = flips.map((flip) => flip.textContent.toLowerCase());
let limit = 24;
const show = () => {
  const { cell, way, text } = form.elements;
  const words = text.value.toLowerCase().split(/\s+/);
  let found = 0;
  flips.forEach((flip, index) => {
    const fits = (!cell.value || flip.dataset.cell === cell.value) && (!way.value || flip.dataset.way === way.value)
      && words.every((word) => texts[index].includes(word));
    flip.hidden = !fits || ++found > limit;
  });
  more.hidden = found <= limit;
  form.querySelector("output").textContent =
    found + " of " + flips.length + (more.hidden ? "" : ", showing the first " + limit);
};
form.addEventListener("input", () => { limit = 24; show(); });
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => {
  const next = flips.filter((flip) => !flip.hidden).length;
  limit += 24;
  show();
  flips.filter((flip) => !flip.hidden)[next].focus();
});
form.hidden = false;
show();
