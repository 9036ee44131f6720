// The page as the server renders it is complete. This fetches it again now and then and changes only what differs, so
// that nothing flickers and no place is lost; and it presses the buttons without leaving the page.
"use strict";

const PAUSE = 2000;
const LONGEST_PAUSE = 30000;
const PICTURE_TRIES = 5;
const said = document.querySelector("#said");
let pause = PAUSE;
let timer = 0;
let lost = false;

function say(words, isError = false) {
  said.textContent = words;
  said.classList.toggle("error", isError);
}

// Makes `now` what `wanted` is; elements are told apart by their id, or else by their place.
function change(now, wanted) {
  for (const { name, value } of [...wanted.attributes]) {
    if (now.getAttribute(name) === value) continue;
    now.setAttribute(name, value);
    if (name === "src") delete now.dataset.keptTries;
  }
  for (const { name } of [...now.attributes]) {
    const kept = name.startsWith("data-kept-") || name === "open";  // what a person has opened stays open
    if (!wanted.hasAttribute(name) && !kept) now.removeAttribute(name);
  }
  let place = now.firstChild;
  for (const child of [...wanted.childNodes]) {
    const known = child.id ? [...now.children].find((other) => other.id === child.id) : place;
    if (!known || known.nodeName !== child.nodeName || (known.id || "") !== (child.id || "")) {
      now.insertBefore(document.importNode(child, true), place);
      continue;
    }
    if (known !== place) now.insertBefore(known, place);
    else place = place.nextSibling;
    if (child.nodeType === Node.TEXT_NODE) {
      if (known.data !== child.data) known.data = child.data;
    } else if (child.nodeType === Node.ELEMENT_NODE) change(known, child);
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

async function renew() {
  clearTimeout(timer);
  const began = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    change(document.querySelector("main"), fresh.querySelector("main"));
    if (lost) say("");
    lost = false;
    // a project of 50,000 tasks sorted by score takes the server a while: ask it less often
    pause = Math.max(PAUSE, 10 * (performance.now() - began));
  } catch {
    if (!lost) say(`The backend does not answer; this is how it was at ${new Date().toLocaleTimeString()}.`, true);
    lost = true;
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
  clearTimeout(timer);
  timer = setTimeout(renew, Math.min(pause, LONGEST_PAUSE));
}

async function press(form, button) {
  if (form.dataset.ask && !confirm(form.dataset.ask)) return;
  if (button) button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", headers: { Accept: "application/json" } });
    const words = await answer.json();
    say(words.done || words.error, !answer.ok);
  } catch {
    say("The backend does not answer; nothing was done.", true);
  }
  if (button) button.disabled = false;
  await renew();
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  press(event.target, event.submitter);
});

// pictures are made one after the other, and who asks for too many at a time is sent away for a moment
document.addEventListener(
  "error",
  (event) => {
    const picture = event.target;
    const tries = Number(picture.dataset?.keptTries || 0);
    if (picture.nodeName !== "IMG" || tries >= PICTURE_TRIES) return;
    picture.dataset.keptTries = tries + 1;
    setTimeout(() => { picture.setAttribute("src", picture.getAttribute("src")); }, 1000 * 2 ** tries);
  },
  true,
);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else renew();
});

timer = setTimeout(renew, PAUSE);
