// What the page does beyond htmx. Without this script everything works by forms and links.
"use strict";

document.documentElement.classList.add("js");

const byId = (id) => document.getElementById(id);

// A page that comes back from the browser's cache shows old states, and forms with a key that was already used.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

// The link that opens the dialog fetches its content.
document.addEventListener("htmx:after:swap", () => {
  const dialog = byId("dialog");
  if (dialog && dialog.querySelector("form") && !dialog.open && dialog.dataset.wanted) {
    delete dialog.dataset.wanted;
    dialog.showModal();
  }
  followLog();
  localTimes();
});

document.addEventListener("click", (event) => {
  const dialog = byId("dialog");
  const opener = event.target.closest("[data-opens-dialog]");
  if (dialog && opener) {
    dialog.dataset.wanted = "yes";
    dialog.returnTo = opener;
  }
  if (dialog && event.target.closest("[data-closes-dialog]")) {
    event.preventDefault();
    dialog.close();
  }
});

document.addEventListener(
  "close",
  (event) => {
    if (event.target.id !== "dialog") return;
    document.body.insertBefore(byId("lost"), byId("main"));
    event.target.replaceChildren(); // a form that is opened again starts empty
    if (event.target.returnTo) event.target.returnTo.focus();
  },
  true,
);

// A hidden tab need not be kept up to date.
document.addEventListener("htmx:before:request", (event) => {
  const source = event.detail.ctx && event.detail.ctx.sourceEvent;
  if (document.hidden && source && source.type === "every") event.preventDefault();
});

// If a request changes nothing on the page, the page must say why. A refusal that is not a page has its reason in `detail`.
const isUpload = (event) => event.detail.ctx && ["upload", "settle"].includes(event.detail.ctx.sourceElement.id);
const isForm = (event) => event.detail.ctx.request.method === "POST";
function notice(text) {
  const place = byId("lost");
  place.textContent = text;
  place.hidden = !text;
  const dialog = byId("dialog"); // an open dialog covers what is behind it
  if (text && dialog.open) dialog.prepend(place);
}
function busyPlace() {
  const dialog = byId("dialog"); // the page behind it may have another one
  return (dialog.open ? dialog : document).querySelector(".busy");
}
function busy(isBusy) {
  const place = busyPlace();
  if (place) place.hidden = !isBusy;
}
document.addEventListener("htmx:before:request", (event) => {
  if (isUpload(event)) return busy(true);
  // What is started is what the form shows: a file that is still sent, or was not taken, is not in its list of datasets.
  const file = byId("upload-file");
  if (event.detail.ctx.sourceElement.id !== "configure" || !file || !file.files.length) return;
  event.preventDefault();
  notice(busyPlace().hidden ? file.dataset.refused : file.dataset.pending);
});
// Whoever chooses a dataset from the list after a file was refused has settled it.
document.addEventListener("change", (event) => {
  const file = byId("upload-file");
  if (event.target.id !== "dataset" || !file || !busyPlace().hidden) return;
  file.value = "";
  file.setCustomValidity("");
  notice("");
});
document.addEventListener("htmx:error", (event) => {
  busy(false);
  notice(byId("lost").dataset[isUpload(event) ? "upload" : "lost"]);
});
document.addEventListener("htmx:after:request", (event) => {
  const answer = event.detail.ctx.response;
  if (answer.status === 401) return location.reload();
  busy(false);
  if (isUpload(event) && answer.status < 400 && byId("problem")) byId("problem").remove();
  if (answer.status < 400) return notice("");
  if ((answer.headers.get("content-type") || "").startsWith("text/html")) {
    return notice(answer.status >= 500 ? byId("lost").dataset[isForm(event) ? "failed" : "lost"] : "");
  }
  event.preventDefault(); // it must not become a part of the page
  try {
    notice(JSON.parse(event.detail.ctx.text).detail);
  } catch {
    notice(byId("lost").dataset[isForm(event) ? "failed" : "lost"]);
  }
});

// A file that is too large is refused before it is sent.
document.addEventListener("change", (event) => {
  const { files, dataset } = event.target;
  if (!files || !dataset.most) return;
  const isLarge = files.length > 0 && files[0].size > Number(dataset.most);
  event.target.setCustomValidity(isLarge ? dataset.large : "");
}, true);

// Times are shown in the reader's zone; the server writes them in UTC.
function localTimes() {
  const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long", timeStyle: "short" });
  for (const time of document.querySelectorAll("time[datetime]")) {
    time.textContent = format.format(new Date(time.dateTime));
  }
}

// The log is scrolled to its end, unless the reader has scrolled up.
function followLog() {
  const log = byId("log-text");
  const follow = byId("follow");
  if (log && follow && follow.checked) log.scrollTop = log.scrollHeight;
}
document.addEventListener("scroll", (event) => {
  const follow = byId("follow");
  if (event.target.id !== "log-text" || !follow) return;
  const log = event.target;
  follow.checked = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
}, true);
document.addEventListener("change", (event) => {
  if (event.target.id === "follow") followLog();
});

// A form is sent once, however often its button is pressed.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.hasAttribute("hx-post")) return;
  if (form.dataset.sent) event.preventDefault();
  form.dataset.sent = "yes";
  if (form.enctype === "multipart/form-data") busy(true);
});

followLog();
localTimes();
