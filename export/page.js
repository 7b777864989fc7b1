"use strict";

// ---- The network -------------------------------------------------------------------------------

// MEAN, STD, LAYERS and NUMBERS, float32 in base64, stand in the page; export/network.py says what they are.
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

// ---- The picture: those steps of docs/predict.md that a drawing needs, which is white on black and nothing else.

const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const round = (value) => Math.floor(value + 0.5);

/** Number the 8-connected components of mask (side × side) from 1, in the order of their first pixels. */
function label(mask, side) {
  const labels = new Int32Array(side * side);
  let count = 0;
  for (let first = 0; first < mask.length; first++) {
    if (!mask[first] || labels[first]) continue;
    labels[first] = ++count;
    for (const open = [first]; open.length;) {
      const at = open.pop(), x = at % side, y = Math.floor(at / side);
      for (let v = Math.max(0, y - 1); v <= Math.min(side - 1, y + 1); v++) {
        for (let u = Math.max(0, x - 1); u <= Math.min(side - 1, x + 1); u++) {
          const next = v * side + u;
          if (mask[next] && !labels[next]) labels[next] = count, open.push(next);
        }
      }
    }
  }
  return labels;
}

/** Return the components 1 to n of labels: the box of each, its pixels, its number. */
function measure(labels, side) {
  const pieces = [];
  labels.forEach((number, i) => {
    if (!number) return;
    const x = i % side, y = Math.floor(i / side);
    const piece = pieces[number - 1] ??= { left: side, top: side, right: 0, bottom: 0, area: 0, numbers: [number] };
    piece.area++;
    piece.left = Math.min(piece.left, x), piece.right = Math.max(piece.right, x + 1);
    piece.top = Math.min(piece.top, y), piece.bottom = Math.max(piece.bottom, y + 1);
  });
  return pieces;
}

/** Return where mask (side × side) is true within reach rows and columns. */
function dilate(mask, side, reach) {
  const along = (from, step, across) => from.map((_, i) => {
    const at = across(i);
    for (let d = Math.max(-reach, -at); d <= Math.min(reach, side - 1 - at); d++) if (from[i + d * step]) return 1;
    return 0;
  });
  return along(along(Uint8Array.from(mask), side, (i) => Math.floor(i / side)), 1, (i) => i % side);
}

/** Set ink to 0 within a pixel of others, except where own is true. */
function erase(ink, side, others, own) {
  const erased = dilate(others, side, 1);
  return ink.map((value, i) => (erased[i] && !own[i] ? 0 : value));
}

const tall = ({ top, bottom }) => bottom - top;

function typicalHeight(pieces) {
  const sorted = [...pieces].sort((a, b) => tall(a) - tall(b)), half = sum(pieces.map(({ area }) => area)) / 2;
  let total = 0;
  return tall(sorted.find(({ area }) => (total += area) >= half));
}

/** Return whether one of a and b is right above the other, as the pieces of one digit are. */
function stacked(a, b, height) {
  const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const gap = Math.max(a.top, b.top) - Math.min(a.bottom, b.bottom);
  const narrower = Math.min(a.right - a.left, b.right - b.left), lower = Math.min(tall(a), tall(b));
  return 2 * across >= narrower && -lower <= 2 * gap && 10 * gap <= 3 * height - 2 * lower;
}

const shared = (a, b) => Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);

/** Return the digits in ink, from left to right, line by line: each as { left, top, right, bottom, ink } (step 5). */
function findDigits(ink, side) {
  const whole = [[{ left: 0, top: 0, right: side, bottom: side, ink }]];
  const strong = ink.map((value) => value >= 0.35), components = measure(label(strong, side), side);
  if (components.length < 2) return whole;
  const reach = Math.max(Math.floor(0.04 * typicalHeight(components)), round(0.005 * side));
  const labels = label(dilate(strong, side, reach), side).map((number, i) => number * strong[i]);
  let pieces = measure(labels, side), height = typicalHeight(pieces);
  pieces = pieces.filter((p) => Math.max(p.right - p.left, tall(p)) >= 0.15 * height);
  if (pieces.length < 2 || pieces.length > 100) return whole;

  const joined = [];
  for (let piece of pieces) {
    for (let at; (at = joined.findIndex((other) => stacked(other, piece, height))) >= 0;) {
      const [other] = joined.splice(at, 1);
      piece = {
        left: Math.min(other.left, piece.left), top: Math.min(other.top, piece.top),
        right: Math.max(other.right, piece.right), bottom: Math.max(other.bottom, piece.bottom),
        area: other.area + piece.area, numbers: [...other.numbers, ...piece.numbers],
      };
    }
    joined.push(piece);
  }
  height = typicalHeight(joined);
  const digits = joined.filter((p) => Math.max(0.5 * height, 8) <= tall(p) && tall(p) <= 2 * height);
  if (digits.length < 2) return whole;
  if (digits.length === 2 && shared(...digits) < 0.75 * Math.max(...digits.map(tall))) return whole;

  const lines = [];
  for (const piece of digits.sort((a, b) => a.left - b.left)) {
    const line = lines.find((line) => 2 * shared(line.at(-1), piece) >= Math.min(tall(line.at(-1)), tall(piece)));
    if (line) line.push(piece);
    else lines.push([piece]);
    const own = labels.map((number) => piece.numbers.includes(number));
    piece.ink = erase(ink, side, labels.map((number, i) => number && !own[i]), own);
  }
  const middle = (line) => sum(line.map(({ top, bottom }) => top + bottom)) / line.length;
  return lines.sort((a, b) => middle(a) - middle(b));
}

function dot(a, b) {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i] * b[i];
  return total;
}

/** Return the first and the last index of what holds sums, but for 1 % of their total at either end (step 6). */
function span(sums) {
  const least = 0.01 * sum(sums);
  let first = 0, last = sums.length - 1;
  for (let total = sums[first]; total <= least;) total += sums[++first];
  for (let total = sums[last]; total <= least;) total += sums[--last];
  return [first, last];
}

/** Return the m rows, of n numbers each, of the matrix that resamples n values to m (step 7). */
function resampling(n, m) {
  const each = n / m;
  return Array.from({ length: m }, (_, i) => Float64Array.from({ length: n }, (_, j) => m < n
    ? Math.max(0, Math.min((i + 1) * each, j + 1) - Math.max(i * each, j)) / each
    : Math.max(0, 1 - Math.abs(clip((i + 0.5) * each - 0.5, 0, n - 1) - j))));
}

/** Return what MNIST would make of a digit and its ink in a box: 28 × 28, row by row, 0 to 255, and how tall it is. */
function centre({ left, top, right, bottom, ink }, side) {
  const across = new Float64Array(right - left), down = new Float64Array(bottom - top);  // the strong ink
  down.forEach((_, y) => across.forEach((_, x) => {
    const value = ink[(top + y) * side + left + x];
    if (value >= 0.35) across[x] += value, down[y] += value;
  }));
  const [x1, x2] = span(across), [y1, y2] = span(down), h = y2 - y1 + 1, w = x2 - x1 + 1;            // step 6
  const [height, width] = [h, w].map((length) => Math.max(1, round(20 * length / Math.max(h, w))));  // 7
  const toRows = resampling(h, height), toColumns = resampling(w, width), start = (top + y1) * side + left + x1;
  const rows = Array.from({ length: h }, (_, y) => ink.subarray(start + y * side, start + y * side + w));
  const columns = toColumns.map((weights) => rows.map((row) => dot(weights, row)));
  let digit = toRows.map((weights) => columns.map((column) => dot(weights, column)));

  const peak = largest(digit.flat());                                                                // 7
  digit = digit.map((row) => row.map((value) => value / peak));
  const visible = Float64Array.from(digit.flat().filter((value) => value > 0.1)).sort();
  const stroke = visible[Math.floor(3 * visible.length / 4)];
  digit = digit.map((row) => row.map((value) => Math.min(value / stroke, 1)));

  const masses = digit.map(sum), mass = sum(masses);                                                 // 8
  const cy = sum(masses.map((m, y) => m * y)) / mass;
  const cx = sum(digit.map((row) => sum(row.map((value, x) => value * x)))) / mass;
  const y0 = clip(round(14 - cy + 1e-6), 0, 28 - height), x0 = clip(round(14 - cx + 1e-6), 0, 28 - width);
  const picture = Object.assign(new Uint8Array(28 * 28), { tall: h });
  digit.forEach((row, y) => picture.set(row.map((value) => round(255 * value)), (y0 + y) * 28 + x0));
  return picture;
}

/** Return the digits in side × side bytes, line by line, as MNIST would have them; none of a blank. */
function prepare(drawing, side) {
  const strongest = largest(drawing);
  if (!strongest) return [];
  const ink = Float64Array.from(drawing, (value) => clip((value / strongest - 0.15) / (0.85 - 0.15), 0, 1));
  return findDigits(ink, side).map((line) => line.map((digit) => centre(digit, side)));
}

// ---- The page ----------------------------------------------------------------------------------

const SIDE = 200;     // pixels of the drawing that is read; the one that is shown has the screen's
const PEN = 0.075;    // the pen's width; this and all positions are shares of the drawing area's side
// Unsure: a lower probability, more ink in the box around it, parts farther apart, another digit so many times as tall.
const UNSURE = 0.88, SOLID = 0.65, APART = 2, TALLER = 1.8;
const NUDGE = 0.025;  // how far an arrow key moves the pen
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const get = (id) => document.getElementById(id);
const pad = get("pad"), screen = pad.getContext("2d"), seen = get("seen").getContext("2d");
const hidden = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
const copy = hidden.getContext("2d", { willReadFrequently: true });
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

/** Tell whether a digit's picture, 28 × 28, shows a blot, or parts that are far apart. */
function isDoubtful(picture) {
  const [{ left, top, right, bottom, area }] = measure(picture.map((value) => value > 127), 28);
  const blot = 2 * (right - left) > bottom - top && area > SOLID * (right - left) * (bottom - top);
  return blot || largest(label(dilate(picture.map((value) => value > 63), 28, APART), 28)) > 1;
}

/** Show what the network sees of each digit, line by line, the number, and the probabilities of the least sure. */
function showReading(lines) {
  const pictures = lines.flat(), width = 28 * Math.max(1, pictures.length), image = new ImageData(width, 28);
  image.data.forEach((_, i) => {
    const x = (i >> 2) % width, y = Math.floor((i >> 2) / width), picture = pictures[Math.floor(x / 28)];
    image.data[i] = i % 4 === 3 ? 255 : picture ? picture[28 * y + x % 28] : 0;
  });
  seen.canvas.width = width;
  seen.putImageData(image, 0, 0);

  const found = lines.map((line) => line.map((picture) => network(picture).map(Math.exp)));
  const best = (shares) => shares.indexOf(largest(shares));
  const number = found.map((line) => line.map(best).join("")).join(" ");
  const tallest = largest(pictures.map((picture) => picture.tall));
  const isUnsure = (shares, i) =>
    largest(shares) < UNSURE || isDoubtful(pictures[i]) || tallest > TALLER * pictures[i].tall;
  const digits = found.flat().map((shares, i) => ({ shares, unsure: isUnsure(shares, i) }));
  digits.sort((a, b) => b.unsure - a.unsure || largest(a.shares) - largest(b.shares));
  const least = digits[0]?.shares;
  const percent = (share) => share > 0.995 ? ">\u00a099\u00a0%" : `${Math.round(100 * share)}\u00a0%`;
  bars.forEach((row, digit) => {
    row.className = least && digit === best(least) ? "best" : "";
    row.style.setProperty("--share", least ? least[digit] : 0);
    row.cells[2].textContent = least ? percent(least[digit]) : "–";
  });
  let certainty = percent(found.flat().reduce((product, shares) => product * largest(shares), 1));
  if (digits[0]?.unsure) {
    const others = least.map((share, digit) => (digit === best(least) ? 0 : share));
    certainty = `unsure:\n${best(least)} or ${best(others)}`;
  }
  get("reading").classList.toggle("empty", !least);
  get("digit").textContent = least ? number : "?";
  get("digit").style.setProperty("--digits", Math.max(1, number.length));
  get("certainty").textContent = least ? certainty : "";
  const position = pen.visible ? (stroke ? "Pen down. " : "Pen up. ") : "";
  say(position + (least ? `${number}, ${certainty.replace("\n", " ")}` : "Nothing drawn"));
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
    showReading(prepare(drawing(), SIDE));
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

let drawer = null;  // pointer that draws; a second finger, or a palm beside a pen, doesn't
pad.addEventListener("pointerdown", (event) => {
  if (drawer !== null || event.button !== 0) return;
  drawer = event.pointerId;
  pad.setPointerCapture(drawer);
  pen.visible = false;
  strokes.push(stroke = [position(event)]);
  update();
});
pad.addEventListener("pointermove", (event) => {
  if (!stroke || event.pointerId !== drawer) return;
  const events = event.getCoalescedEvents?.() ?? [];  // all that came since the last frame
  stroke.push(...(events.length ? events : [event]).map(position));
  update();
});
pad.addEventListener("lostpointercapture", (event) => {
  if (event.pointerId === drawer) stroke = drawer = null;
});

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
// macOS reports no keyup of a key that is let go while Cmd is down.
pad.addEventListener("keyup", (event) => (event.key === "Meta" ? held.clear() : held.delete(event.key)));
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
addEventListener("resize", update);  // to a screen of another resolution, the size stays the same
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
