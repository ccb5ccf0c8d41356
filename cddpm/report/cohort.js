"use strict";
// Rows of scans: sorted, filtered, ticked. Ticks are kept by this browser as what differs from the list that was there when the
// page was made; they become that list's successor as a download.
(() => {
  const list = document.getElementById("lineup");
  if (!list) return; // a page without scans
  const control = (name) => document.getElementById(`lineup-${name}`);
  const by = control("by"), order = control("order"), filters = ["dataset", "modality", "splits", "finding"].filter(control);
  const store = `cddpm-exclude:${list.dataset.place}`;
  const listed = new Map(JSON.parse(control("listed").textContent).map(([dataset, subject, reason]) => [`${dataset}/${subject}`, { dataset, subject, reason }]));
  const rows = Array.from(list.children, (item) => ({
    item,
    key: `${item.dataset.dataset}/${item.dataset.subject}`,
    name: `${item.dataset.subject} ${item.dataset.dataset} ${item.dataset.modality}`,
    tick: item.querySelector(".tick"),
    reason: item.querySelector(".reason"),
    words: { dataset: [item.dataset.dataset], modality: [item.dataset.modality], splits: item.dataset.splits.split(" "), finding: item.dataset.finding.split(" ").filter(Boolean) },
    figures: Object.fromEntries(Array.from(item.querySelectorAll(".chip"), (chip) => [chip.dataset.key, { chip, value: read(chip.dataset.value), z: read(chip.dataset.z) }])),
  }));
  const of = new Map();
  for (const row of rows) of.set(row.key, [...(of.get(row.key) ?? []), row]);

  function read(text) {
    return text === undefined ? null : Number(text);
  }

  // Ticks
  let changes = {}; // by key: the reason, or null for one that is taken back
  function recall() {
    try {
      changes = JSON.parse(localStorage.getItem(store)) ?? {};
    } catch {
      say("This browser keeps no ticks: download the list before you leave the page.");
    }
  }
  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify(changes));
    } catch {
      say("This browser keeps no ticks: download the list before you leave the page.");
    }
  }
  function say(text) {
    control("told").textContent = text;
    control("told").hidden = false;
  }
  const reasonOf = (key) => (key in changes ? changes[key] : (listed.get(key)?.reason ?? null));
  function set(key, reason) {
    changes[key] = reason;
    if (reason === (listed.get(key)?.reason ?? null)) delete changes[key];
    keep();
  }
  function show(key) {
    const reason = reasonOf(key);
    for (const row of of.get(key) ?? []) {
      row.tick.checked = reason !== null;
      row.item.classList.toggle("out", reason !== null);
      row.reason.hidden = reason === null;
      if (row.reason !== document.activeElement) row.reason.value = reason ?? "";
    }
  }
  function count() {
    const shown = rows.filter((row) => !row.item.hidden).length;
    const out = excluded().length;
    control("count").textContent = `${shown} of ${rows.length} scans shown, ${out} subject${out === 1 ? "" : "s"} ticked`;
    control("none").hidden = shown > 0;
    control("reset").hidden = Object.keys(changes).length === 0;
  }
  // Those of the list that are not on this page stay on it.
  function excluded() {
    const keys = new Set([...listed.keys(), ...Object.keys(changes).filter((key) => of.has(key))]);
    const subjects = Array.from(keys, (key) => {
      const { dataset, subject } = listed.get(key) ?? of.get(key)[0].item.dataset;
      return { dataset, subject, reason: reasonOf(key) };
    });
    return subjects.filter((one) => one.reason !== null).sort((a, b) => (a.dataset + a.subject < b.dataset + b.subject ? -1 : 1));
  }
  const quoted = (text) => (/[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""').replace(/[\r\n]+/g, " ")}"` : text);
  function save() {
    const lines = excluded().map((one) => [one.dataset, one.subject, one.reason].map(quoted).join(","));
    const file = new Blob([["dataset,subject,reason", ...lines, ""].join("\n")], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = "exclude.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // Order and choice
  function sortValue(row) {
    if (by.value === "name") return row.name;
    if (by.value === "score") return Number(row.item.dataset.score);
    const figure = row.figures[by.value];
    if (!figure) return null;
    return order.value === "odd" ? figure.z && Math.abs(figure.z) : figure.value;
  }
  function sort() {
    const upwards = order.value === "low";
    const valued = rows.map((row) => ({ row, value: sortValue(row) }));
    valued.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      const apart = typeof a.value === "string" ? a.value.localeCompare(b.value, "en", { numeric: true }) : a.value - b.value;
      return upwards ? apart : -apart;
    });
    list.append(...valued.map((one) => one.row.item));
    rows.splice(0, rows.length, ...valued.map((one) => one.row));
    for (const chip of list.querySelectorAll(".chip.sorted")) chip.classList.remove("sorted");
    for (const row of rows) row.figures[by.value]?.chip.classList.add("sorted");
  }
  function fits(row) {
    const word = control("name").value.trim().toLowerCase();
    if (word && !row.name.toLowerCase().includes(word)) return false;
    if (control("ticked").checked && !row.tick.checked) return false;
    return filters.every((name) => {
      const wanted = control(name).value;
      if (wanted === "*odd") return "odd" in row.item.dataset;
      if (wanted === "*any") return row.words.finding.length > 0;
      return !wanted || row.words[name].includes(wanted);
    });
  }
  function filter() {
    for (const row of rows) row.item.hidden = !fits(row);
    count();
  }

  // Up and down from box to box
  function move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !event.target.classList.contains("tick")) return;
    event.preventDefault();
    const shown = rows.filter((row) => !row.item.hidden);
    const at = shown.findIndex((row) => row.tick === event.target);
    const next = shown[Math.min(shown.length - 1, Math.max(0, at + step))];
    next.tick.focus({ preventScroll: true });
    next.item.scrollIntoView({ block: "nearest", behavior: "instant" });
  }

  by.addEventListener("change", () => {
    order.value = by.value === "name" ? "low" : "high";
    sort();
  });
  order.addEventListener("change", sort);
  for (const name of [...filters, "name", "ticked"]) control(name).addEventListener("input", filter);
  control("marks").addEventListener("change", (event) => list.classList.toggle("bare", !event.target.checked));
  control("large").addEventListener("change", (event) => list.classList.toggle("large", event.target.checked));
  control("save").addEventListener("click", save);
  control("reset").addEventListener("click", () => {
    const keys = Object.keys(changes);
    changes = {};
    keep();
    keys.forEach(show);
    count();
  });
  list.addEventListener("keydown", move);
  list.addEventListener("input", (event) => {
    const item = event.target.closest(".scan");
    const key = `${item.dataset.dataset}/${item.dataset.subject}`;
    if (event.target.classList.contains("tick")) set(key, event.target.checked ? (listed.get(key)?.reason || item.dataset.reason) : null);
    else set(key, event.target.value);
    show(key);
    count();
  });

  // Pictures are made when their row comes near
  const near = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
      near.unobserve(target);
      for (const picture of target.querySelectorAll("img[data-src]")) {
        picture.src = picture.dataset.src;
        delete picture.dataset.src;
      }
    }
  }, { rootMargin: "800px" });
  for (const { item } of rows) near.observe(item);

  recall();
  for (const key of of.keys()) if (reasonOf(key) !== null) show(key);
  filter();
  list.dataset.ready = "yes";
})();
