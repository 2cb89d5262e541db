// What the robot sees: its cameras' pictures with their age, the ground around it from above, and whether
// that is trusted. A camera's next picture comes when this one is shown.

const ROWS = 11, COLUMNS = 17; // of the map: y from right to left, x ahead within
const FULL = 0.25; // m above or below the feet at which a colour is full
const OLD_MS = 500; // a picture of then says little about now

export class Eyes {
  /** Args: card, the element that holds it all, hidden until there is something to see; seen(camera), called when its picture is shown. */
  constructor(card, seen) {
    this.card = card; this.seen = seen;
    [this.said, this.more] = card.querySelectorAll("p");
    this.row = card.querySelector(".row");
    this.ground = card.querySelector(".ground");
    this.cameras = new Map(); // name to {canvas, words, taken: ms, dropped}
  }

  /** Show a camera's picture. Args: taken, ms of this browser's clock; grey or jpeg in base64. */
  async camera({camera, width, height, dropped, taken, grey, jpeg}) {
    this.card.hidden = false;
    const eye = this.cameras.get(camera) ?? this.add(camera, jpeg ? "colour" : "depth");
    Object.assign(eye, {taken, dropped});
    if (grey) drawDepth(eye.canvas, width, height, bytes(grey));
    else if (jpeg) await drawColour(eye.canvas, bytes(jpeg)).catch(() => eye.taken = null);
    else eye.taken = null;
    this.age();
    this.seen(camera);
  }

  add(camera, kind) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), words = document.createElement("figcaption");
    canvas.className = kind; canvas.id = `eye-${camera}`;
    figure.append(canvas, words);
    if (kind === "colour") this.row.prepend(figure); else this.ground.parentElement.before(figure);
    const eye = {canvas, words, kind};
    this.cameras.set(camera, eye);
    return eye;
  }

  /** Pictures grow older also while none comes. */
  age() {
    for (const {words, kind, taken, dropped} of this.cameras.values()) {
      const old = taken === null ? null : performance.now() - taken;
      words.textContent = `${kind}, ${old === null ? "unreadable" : `${old.toFixed(0)} ms old`}${dropped ? `, ${dropped} lost` : ""}`;
      words.className = old === null || old > OLD_MS ? "bad" : "";
    }
  }

  /** Show what perception says. */
  show(map) {
    this.card.hidden = false;
    this.drawGround(map);
    this.said.textContent = map.gate.length ? `flat ground is assumed: ${map.gate.join(", ")}` : "the map is trusted";
    this.said.className = `said ${map.gate.length ? "bad" : "good"}`;
    const parts = [`map ${map.age_ms < 0 ? "empty" : `${map.age_ms} ms old`}, ± ${(100 * map.std).toFixed(1)} cm`, `${map.frames} frames`];
    if (map.camera) parts.push(map.camera);
    const refused = Object.entries(map.refused).map(([name, count]) => `${count} ${name}`);
    if (refused.length) parts.push(`dropped: ${refused.join(", ")}`);
    this.more.textContent = parts.join(" · ");
  }

  drawGround({height}) {
    // Ahead is up and left is left: a column of the picture is a row of the map, from its last one on.
    paint(this.ground, ROWS, COLUMNS, (i) => {
      const x = COLUMNS - 1 - Math.floor(i / ROWS), y = ROWS - 1 - i % ROWS;
      const up = Math.max(-1, Math.min(1, -height[y * COLUMNS + x] / FULL));
      return up > 0 ? [60 + 195 * up, 60 + 130 * up, 60] : [60, 60 - 90 * up, 60 - 195 * up];
    });
  }
}

function drawDepth(canvas, width, height, grey) {
  paint(canvas, width, height, (i) => grey[i] ? [grey[i], grey[i], grey[i]] : [64, 16, 24]);
}

async function drawColour(canvas, jpeg) {
  const image = await createImageBitmap(new Blob([jpeg], {type: "image/jpeg"}));
  if (canvas.width !== image.width || canvas.height !== image.height) [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  image.close();
}

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

function paint(canvas, width, height, colour) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...colour(i), 255], 4 * i);
  context.putImageData(image, 0, 0);
}
