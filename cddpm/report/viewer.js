"use strict";
// One volume at a time: slices of it as pictures, and counts above a threshold from a histogram of levels. A voxel's level is
// the number of stops (thresholds on offer) strictly below its score, so that "score > stop i" is "level > i".
(() => {
  const root = document.getElementById("viewer");
  if (!root) return; // a page without volumes
  const parts = (name) => root.querySelectorAll(`[data-part="${name}"]`);
  const control = (name) => document.getElementById(`viewer-${name}`);
  const said = (name) => root.querySelector(`output[for="viewer-${name}"]`);
  const [choice, plane, slice, threshold, opacity] = ["volume", "plane", "slice", "threshold", "opacity"].map(control);
  const packed = Array.from(document.querySelectorAll("script.exhibit"), (element) => JSON.parse(element.textContent));
  const SEGMENTED = 1, LESION = 2;
  const HIT = [47, 208, 165], ALARM = [255, 90, 60], MISSED = [180, 140, 255];
  let shown = null;

  async function unpack(about) {
    const bytes = Uint8Array.from(atob(about.voxels), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const voxels = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let i = 1; i < voxels.length; i++) voxels[i] += voxels[i - 1];
    const size = about.shape.reduce((a, b) => a * b);
    const block = (number) => voxels.subarray(number * size, (number + 1) * size);
    return { ...about, image: block(0), reconstruction: block(1), levels: block(2), marks: block(3) };
  }

  // Per stop: voxels above it, and lesion voxels among them.
  function count(volume) {
    const every = new Array(257).fill(0), lesion = new Array(257).fill(0);
    for (let i = 0; i < volume.levels.length; i++) {
      every[volume.levels[i]] += 1;
      if (volume.marks[i] & LESION) lesion[volume.levels[i]] += 1;
    }
    const above = (counts) => {
      let sum = 0;
      const sums = new Array(volume.stops.length);
      for (let level = 255; level > 0; level--) {
        sum += counts[level];
        if (level <= sums.length) sums[level - 1] = sum;
      }
      return sums;
    };
    const lesions = lesion.reduce((a, b) => a + b);
    return { found: above(every), hits: above(lesion), lesions };
  }

  const ratio = (part, whole) => (whole ? part / whole : null);
  const dice = (counts, stop) => ratio(2 * counts.hits[stop], counts.found[stop] + counts.lesions);

  // Where a picture's rows and columns lie in the block (Z, Y, X), as seen from the feet, the front, the left.
  function layout(volume, name) {
    const [x, y, z] = volume.shape, [dx, dy, dz] = volume.voxel_size_mm;
    const top = (z - 1) * y * x;
    if (name === "axial") return { count: z, step: y * x, start: 0, width: x, height: y, column: 1, row: x, size: [dx, dy], axis: 2, sides: "RL" };
    if (name === "coronal") return { count: y, step: x, start: top, width: x, height: z, column: 1, row: -y * x, size: [dx, dz], axis: 1, sides: "RL" };
    return { count: x, step: 1, start: top, width: y, height: z, column: x, row: -y * x, size: [dy, dz], axis: 0, sides: "AP" };
  }

  const grey = (shade) => [shade, shade, shade];
  function hot(share) {
    const part = (from) => Math.round(255 * Math.min(1, Math.max(0, 3 * share - from)));
    return [part(0), part(1), part(2)];
  }
  const over = (shade, colour, share) => colour.map((c) => Math.round(share * c + (1 - share) * shade));

  function painters(volume) {
    const stop = Number(threshold.value), share = Number(opacity.value) / 100, top = volume.stops.at(-1) || 1;
    const heat = Array.from({ length: 257 }, (_, level) => hot(level ? volume.stops[Math.min(level, volume.stops.length - 1)] / top : 0));
    const marked = (bit, colour) => (i) => (volume.marks[i] & bit ? over(volume.image[i], colour, share) : grey(volume.image[i]));
    return {
      input: (i) => grey(volume.image[i]),
      reconstruction: (i) => grey(volume.reconstruction[i]),
      map: (i) => heat[volume.levels[i]],
      live: (i) => {
        const found = volume.levels[i] > stop, lesion = volume.marks[i] & LESION;
        if (!found && !lesion) return grey(volume.image[i]);
        return over(volume.image[i], found ? (lesion ? HIT : ALARM) : MISSED, share);
      },
      segmentation: marked(SEGMENTED, ALARM),
      truth: marked(LESION, HIT),
    };
  }

  function draw() {
    const at = layout(shown, plane.value), index = Number(slice.value), first = shown.first[at.axis];
    const words = `${plane.value} slice ${first + index + 1} of ${shown.whole[at.axis]}`;
    for (const [name, colour] of Object.entries(painters(shown))) {
      const canvas = root.querySelector(`canvas[data-view="${name}"]`);
      [canvas.width, canvas.height] = [at.width, at.height];
      const wide = at.width * at.size[0], high = at.height * at.size[1];
      canvas.style.width = `${(100 * wide) / Math.max(wide, high)}%`;
      canvas.style.height = `${(100 * high) / Math.max(wide, high)}%`;
      [canvas.parentElement.dataset.left, canvas.parentElement.dataset.right] = at.sides;
      canvas.setAttribute("aria-label", `${name}, ${words}`);
      const picture = new ImageData(at.width, at.height);
      for (let row = 0, out = 0; row < at.height; row++) {
        let i = at.start + index * at.step + row * at.row;
        for (let column = 0; column < at.width; column++, i += at.column, out += 4) {
          const [red, green, blue] = colour(i);
          picture.data[out] = red; picture.data[out + 1] = green; picture.data[out + 2] = blue; picture.data[out + 3] = 255;
        }
      }
      canvas.getContext("2d").putImageData(picture, 0, 0);
    }
    said("slice").textContent = `${first + index + 1} of ${shown.whole[at.axis]}`;
    slice.setAttribute("aria-valuetext", said("slice").textContent);
  }

  function read() {
    const stop = Number(threshold.value), { counts } = shown, ml = shown.voxel_size_mm.reduce((a, b) => a * b) / 1000;
    const tell = (name, value) => {
      const element = control(name);
      element.value = value === null ? "-" : value.toFixed(4);
      element.dataset.value = value === null ? "" : String(value);
    };
    const value = shown.stops[stop];
    said("threshold").textContent = Number(value.toPrecision(4)) + (value === shown.threshold ? " (operating point)" : "");
    said("threshold").dataset.value = String(value);
    threshold.setAttribute("aria-valuetext", said("threshold").textContent);
    control("found").value = `${(counts.found[stop] * ml).toFixed(2)} ml`;
    control("found").dataset.value = String(counts.found[stop]);
    tell("dice", dice(counts, stop));
    tell("precision", ratio(counts.hits[stop], counts.found[stop]));
    tell("recall", ratio(counts.hits[stop], counts.lesions));
    tell("kept", shown.kept_dice);
    mark(stop);
  }

  // Curve: x from 36 to 312, y from 176 (0) to 12 (the best Dice, or 1 if there is none).
  const SVG = "http://www.w3.org/2000/svg";
  const across = (stop) => 36 + (276 * shown.stops[stop]) / (shown.stops.at(-1) || 1);
  const up = (value) => 176 - (164 * (value ?? 0)) / (shown.best.dice || 1);
  function add(group, kind, attributes, text = "") {
    const element = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    group.append(element);
  }
  function curve() {
    const svg = parts("curve")[0], group = svg.querySelector("g"), own = shown.stops.indexOf(shown.threshold);
    group.replaceChildren();
    const line = shown.stops.map((_, stop) => `${across(stop).toFixed(1)},${up(dice(shown.counts, stop)).toFixed(1)}`);
    const soft = { fill: "var(--soft)", "font-size": 12 };
    add(group, "path", { d: "M36,12V176H312", fill: "none", stroke: "var(--line)" });
    add(group, "path", { d: `M${across(own)},12V176`, stroke: "var(--ink)", "stroke-dasharray": "4 3" });
    add(group, "polyline", { points: line.join(" "), fill: "none", stroke: "var(--series1)", "stroke-width": 2 });
    add(group, "text", { x: 32, y: 16, "text-anchor": "end", ...soft }, shown.best.dice.toFixed(2));
    add(group, "text", { x: 32, y: 180, "text-anchor": "end", ...soft }, "0");
    add(group, "text", { x: 312, y: 193, "text-anchor": "end", ...soft }, `threshold ${Number(shown.stops.at(-1).toPrecision(3))}`);
    add(group, "circle", { r: 5, fill: "var(--mark)", "data-here": "" });
    svg.setAttribute("aria-label", `Dice against threshold: at best ${shown.best.dice.toFixed(4)} at ${Number(shown.stops[shown.best.stop].toPrecision(4))}`);
  }
  function mark(stop) {
    const here = root.querySelector("[data-here]");
    if (here) { here.setAttribute("cx", across(stop)); here.setAttribute("cy", up(dice(shown.counts, stop))); }
  }

  function turn() {
    const at = layout(shown, plane.value);
    slice.max = at.count - 1;
    slice.value = plane.value === "axial" ? shown.slice : Math.floor(at.count / 2);
  }
  function move(stop) { threshold.value = stop; read(); draw(); }

  async function open(number) {
    delete root.dataset.ready;
    shown = await unpack(packed[number]);
    shown.counts = count(shown);
    const values = shown.stops.map((_, stop) => dice(shown.counts, stop) ?? 0), stop = values.indexOf(Math.max(...values));
    shown.best = { stop, dice: values[stop] };
    for (const element of parts("with-truth")) element.hidden = !shown.truth;
    parts("best")[0].hidden = !(shown.truth && shown.counts.lesions);
    parts("note")[0].textContent = shown.note;
    parts("top")[0].textContent = Number(shown.stops.at(-1).toPrecision(3));
    threshold.max = shown.stops.length - 1;
    if (shown.truth) curve();
    turn();
    move(shown.stops.indexOf(shown.threshold));
    said("opacity").textContent = `${opacity.value} %`;
    root.dataset.ready = shown.name;
  }
  function openOrTell(number) {
    open(number).catch((error) => {
      const old = typeof DecompressionStream === "undefined" ? "; this browser is too old, use one of 2023 or later" : "";
      parts("fault")[0].textContent = `The volume cannot be shown: ${error.message}${old}.`;
      parts("fault")[0].hidden = false;
    });
  }

  choice.append(...packed.map((about, number) => new Option(about.name, number)));
  parts("choice")[0].hidden = packed.length < 2;
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  choice.addEventListener("change", () => openOrTell(Number(choice.value)));
  plane.addEventListener("change", () => { turn(); draw(); });
  slice.addEventListener("input", draw);
  threshold.addEventListener("input", () => { read(); draw(); });
  opacity.addEventListener("input", () => { said("opacity").textContent = `${opacity.value} %`; draw(); });
  parts("own")[0].addEventListener("click", () => move(shown.stops.indexOf(shown.threshold)));
  parts("best")[0].addEventListener("click", () => move(shown.best.stop));
  openOrTell(0);
})();
