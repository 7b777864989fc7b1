"use strict";

// ---- The network -------------------------------------------------------------------------------

// MEAN, STD, LAYERS and NUMBERS, float32 in base64, stand in the page; export/web.py says what they are.
const numbers = new Float32Array(Uint8Array.from(atob(NUMBERS), (c) => c.charCodeAt(0)).buffer);

/** Convolve maps (inputs, side, side) with kernels (outputs, inputs, size, size), zeros around. */
function convolve(maps, side, [outputs, inputs, size], kernels, biases) {
  const area = side * side, reach = (size - 1) / 2, result = new Float32Array(outputs * area);
  for (let output = 0, k = 0; output < outputs; output++) {
    const out = result.subarray(output * area, (output + 1) * area).fill(biases[output]);
    for (let input = 0; input < inputs; input++) {
      for (let dy = -reach; dy <= reach; dy++) {
        for (let dx = -reach; dx <= reach; dx++, k++) {
          const weight = kernels[k], shift = input * area + dy * side + dx;
          const left = Math.max(0, -dx), right = Math.min(side, side - dx);
          for (let y = Math.max(0, -dy); y < Math.min(side, side - dy); y++) {
            for (let i = y * side + left; i < y * side + right; i++) out[i] += weight * maps[i + shift];
          }
        }
      }
    }
  }
  return result;
}

/** Halve the side of maps (channels, side, side) by the maximum of each 2 × 2 pixels. */
function pool(maps, side) {
  const half = side / 2;
  return new Float32Array(maps.length / 4).map((_, i) => {
    const at = 2 * side * Math.floor(i / half) + 2 * (i % half);
    return Math.max(maps[at], maps[at + 1], maps[at + side], maps[at + side + 1]);
  });
}

/** Return the ten log-probabilities of a picture: 28 × 28 bytes, row by row, 0 for paper to 255 for ink. */
function network(picture) {
  let maps = Float32Array.from(picture, (value) => (value / 255 - MEAN) / STD), side = 28, read = 0;
  const take = (count) => numbers.subarray(read, read += count);
  for (const { shape, relu, norm, pool: pooled } of LAYERS) {
    const area = side * side, kernels = take(shape[0] * shape[1] * shape[2] ** 2);
    maps = convolve(maps, side, shape, kernels, take(shape[0]));
    if (relu) maps = maps.map((value) => Math.max(0, value));
    if (norm) {
      const factors = take(shape[0]), summands = take(shape[0]);
      maps = maps.map((value, i) => value * factors[Math.floor(i / area)] + summands[Math.floor(i / area)]);
    }
    if (pooled) {
      maps = pool(maps, side);
      side /= 2;
    }
  }
  const area = side * side;
  maps = new Float32Array(maps.length / area)
    .map((_, i) => maps.subarray(i * area, (i + 1) * area).reduce((a, b) => a + b) / area);
  const top = Math.max(...maps), log = top + Math.log(maps.reduce((sum, value) => sum + Math.exp(value - top), 0));
  return maps.map((value) => value - log);
}

// ---- The picture: steps 4 to 10 of predict/preprocess.py ---------------------------------------------------

const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const round = (value) => Math.floor(value + 0.5);

function dot(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

/** Return the first and the last index of what holds sums, but for 1 % of their total at either end (step 7). */
function span(sums) {
  const least = 0.01 * sum(sums);
  let first = 0, last = sums.length - 1;
  for (let total = sums[first]; total <= least;) total += sums[++first];
  for (let total = sums[last]; total <= least;) total += sums[--last];
  return [first, last];
}

/** Return the m rows, of n numbers each, of the matrix that resamples n values to m (step 8). */
function resampling(n, m) {
  const each = n / m;
  return Array.from({ length: m }, (_, i) => Float64Array.from({ length: n }, (_, j) => m < n
    ? Math.max(0, Math.min((i + 1) * each, j + 1) - Math.max(i * each, j)) / each
    : Math.max(0, 1 - Math.abs(clip((i + 0.5) * each - 0.5, 0, n - 1) - j))));
}

/** Return what MNIST would make of side × side bytes: 28 × 28, row by row, 0 to 255; null of a blank. */
function prepare(drawing, side) {
  const ink = Float64Array.from(drawing);
  for (let i = 0; i < ink.length; i++) ink[i] /= 255;
  const border = [];                                                                                 // step 4
  for (let i = 0; i < side; i++) border.push(ink[i], ink[side * (side - 1) + i]);
  for (let y = 1; y < side - 1; y++) border.push(ink[y * side], ink[y * side + side - 1]);
  border.sort((a, b) => a - b);
  const ground = (border[border.length / 2 - 1] + border[border.length / 2]) / 2;
  for (let i = 0; i < ink.length; i++) ink[i] = Math.abs(ink[i] - ground);                           // 5
  const strongest = largest(ink);
  if (strongest < 0.1) return null;

  const across = new Float64Array(side), down = new Float64Array(side);  // the strong ink in columns and rows
  for (let y = 0, i = 0; y < side; y++) {
    for (let x = 0; x < side; x++, i++) {
      ink[i] = clip((ink[i] / strongest - 0.15) / (0.85 - 0.15), 0, 1);                              // 6
      if (ink[i] >= 0.35) across[x] += ink[i], down[y] += ink[i];
    }
  }
  const [left, right] = span(across), [top, bottom] = span(down);                                    // 7
  const h = bottom - top + 1, w = right - left + 1;
  const [height, width] = [h, w].map((length) => Math.max(1, round(20 * length / Math.max(h, w))));  // 8
  const toRows = resampling(h, height), toColumns = resampling(w, width);
  const rows = Array.from({ length: h }, (_, y) => ink.subarray((top + y) * side + left, (top + y) * side + right + 1));
  const columns = toColumns.map((weights) => rows.map((row) => dot(weights, row)));
  const digit = toRows.map((weights) => columns.map((column) => dot(weights, column)));

  const peak = largest(digit.flat());                                                                // 9
  const masses = digit.map(sum), mass = sum(masses);                                                 // 10
  const cy = sum(masses.map((m, y) => m * y)) / mass;
  const cx = sum(digit.map((row) => sum(row.map((value, x) => value * x)))) / mass;
  const y0 = clip(round(14 - cy + 1e-6), 0, 28 - height), x0 = clip(round(14 - cx + 1e-6), 0, 28 - width);
  const picture = new Uint8Array(28 * 28);
  digit.forEach((row, y) => picture.set(row.map((value) => round(255 * value / peak)), (y0 + y) * 28 + x0));
  return picture;
}

// ---- The page ----------------------------------------------------------------------------------

const SIDE = 200;     // pixels of the drawing that is read; the one that is shown has the screen's
const PEN = 0.075;    // the pen's width; this and all positions are shares of the drawing area's side
const NUDGE = 0.025;  // how far an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const get = (id) => document.getElementById(id);
const pad = get("pad"), screen = pad.getContext("2d"), seen = get("seen").getContext("2d");
const copy = new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = get("bars").insertRow();
  row.innerHTML = `<th scope="row">${digit}</th><td><div></div></td><td></td>`;
  return row;
});
let strokes = [];        // each a list of positions [x, y]
let stroke = null;       // the one being drawn, by pointer or by keys
const pen = { x: 0.5, y: 0.2, visible: false };  // the keyboard's
const held = new Set();  // the arrow keys that are down: two of them move the pen diagonally

function paint(context, side, colour) {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = PEN * side;
  context.strokeStyle = colour;
  for (const points of strokes) {
    context.beginPath();
    context.moveTo(points[0][0] * side, points[0][1] * side + 0.01);  // a line of no length may leave no dot
    for (const [x, y] of points) context.lineTo(x * side, y * side);
    context.stroke();
  }
}

/** Return the drawing as SIDE × SIDE bytes, row by row, 0 for paper to 255 for ink. */
function drawing() {
  copy.fillStyle = "black";
  copy.fillRect(0, 0, SIDE, SIDE);
  paint(copy, SIDE, "white");
  const { data } = copy.getImageData(0, 0, SIDE, SIDE), bytes = new Uint8Array(SIDE * SIDE);
  for (let i = 0; i < bytes.length; i++) bytes[i] = data[4 * i];
  return bytes;
}

function showDrawing() {
  const side = Math.round(pad.clientWidth * devicePixelRatio), style = getComputedStyle(pad);
  pad.width = pad.height = side;  // which empties it, too
  paint(screen, side, style.getPropertyValue("--text"));
  get("hint").hidden = strokes.length > 0;
  if (!pen.visible) return;
  screen.beginPath();
  screen.arc(pen.x * side, pen.y * side, PEN / 2 * side, 0, 2 * Math.PI);
  screen.lineWidth = 3 * devicePixelRatio;
  screen.fillStyle = screen.strokeStyle = style.getPropertyValue("--accent");
  if (stroke) screen.fill();
  screen.stroke();
}

/** Show what the network sees and the ten probabilities; of a blank, null and null, neither. */
function showReading(picture, shares) {
  const image = seen.createImageData(28, 28);
  image.data.forEach((_, i) => { image.data[i] = i % 4 === 3 ? 255 : picture ? picture[i >> 2] : 0; });
  seen.putImageData(image, 0, 0);
  const percent = (share) => share > 0.995 ? ">\u00a099\u00a0%" : `${Math.round(100 * share)}\u00a0%`;
  const best = shares ? shares.indexOf(largest(shares)) : null;
  bars.forEach((row, digit) => {
    row.className = digit === best ? "best" : "";
    row.style.setProperty("--share", shares ? shares[digit] : 0);
    row.cells[2].textContent = shares ? percent(shares[digit]) : "–";
  });
  get("reading").classList.toggle("empty", !shares);
  get("digit").textContent = shares ? best : "?";
  get("certainty").textContent = shares ? percent(shares[best]) : "";
  const position = pen.visible ? (stroke ? "Pen down. " : "Pen up. ") : "";
  say(position + (shares ? `${best}, ${percent(shares[best])}` : "Nothing drawn"));
}

let speech = 0;
/** Have a screen reader say ``text`` once the drawing has rested for a moment. */
function say(text) {
  clearTimeout(speech);
  speech = setTimeout(() => { if (get("status").textContent !== text) get("status").textContent = text; }, 700);
}

let frame = 0;
/** Show everything anew, once for each frame of the screen at most. */
function update() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    showDrawing();
    const picture = prepare(drawing(), SIDE);
    showReading(picture, picture && network(picture).map(Math.exp));
  });
}

function clear() {
  strokes = [];
  stroke = null;
  update();
}

function position(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

pad.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  pad.setPointerCapture(event.pointerId);
  pen.visible = false;
  strokes.push(stroke = [position(event)]);
  update();
});
pad.addEventListener("pointermove", (event) => {
  if (!stroke || !pad.hasPointerCapture(event.pointerId)) return;
  const events = event.getCoalescedEvents?.() ?? [];  // all that came since the last frame
  stroke.push(...(events.length ? events : [event]).map(position));
  update();
});
pad.addEventListener("lostpointercapture", () => { stroke = null; });

pad.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || (event.key === " " && event.repeat)) return;
  if (event.key in ARROWS) {
    held.add(event.key);
    const [dx, dy] = [0, 1].map((axis) => NUDGE * sum([...held].map((key) => ARROWS[key][axis])));
    pen.x = clip(pen.x + dx, 0, 1);
    pen.y = clip(pen.y + dy, 0, 1);
    stroke?.push([pen.x, pen.y]);
  } else if (event.key !== " ") {
    return;
  } else if (stroke) {
    stroke = null;
  } else {
    strokes.push(stroke = [[pen.x, pen.y]]);
  }
  event.preventDefault();
  pen.visible = true;
  update();
});
pad.addEventListener("keyup", (event) => held.delete(event.key));
pad.addEventListener("focus", () => {
  pen.visible = pad.matches(":focus-visible");
  update();
});
pad.addEventListener("blur", () => {
  held.clear();
  stroke = null;
  pen.visible = false;
  update();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" || event.key === "Delete") clear();
});
get("clear").addEventListener("click", clear);
new ResizeObserver(update).observe(pad);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
