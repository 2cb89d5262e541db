// What the robot sees: its depth picture, the ground around it from above, and whether that is trusted.

const ROWS = 11, COLUMNS = 17; // of the map: y from right to left, x ahead within
const FULL = 0.25; // m above or below the feet at which a colour is full

export class Eyes {
  /** Args: card, the element that holds it all; hidden until there is something to see. */
  constructor(card) {
    this.card = card;
    [this.said, this.more] = card.querySelectorAll("p");
    this.depth = card.querySelector(".depth");
    this.ground = card.querySelector(".ground");
  }

  show({frame, map}) {
    this.card.hidden = false;
    if (frame?.grey) this.drawDepth(frame);
    if (map) this.drawGround(map);
    const shut = map ? map.gate : ["no word from perception"];
    this.said.textContent = shut.length ? `flat ground is assumed: ${shut.join(", ")}` : "the map is trusted";
    this.said.className = `said ${shut.length ? "bad" : "good"}`;
    const parts = [frame ? `picture ${frame.age_ms} ms old` : "no picture"];
    if (map) {
      parts.push(`map ${map.age_ms < 0 ? "empty" : `${map.age_ms} ms old`}, ± ${(100 * map.std).toFixed(1)} cm`, `${map.frames} frames`);
      const refused = Object.entries(map.refused).map(([name, count]) => `${count} ${name}`);
      if (refused.length) parts.push(`dropped: ${refused.join(", ")}`);
    }
    this.more.textContent = parts.join(" · ");
  }

  drawDepth({width, height, grey}) {
    const bytes = Uint8Array.from(atob(grey), (letter) => letter.charCodeAt(0));
    paint(this.depth, width, height, (i) => bytes[i] ? [bytes[i], bytes[i], bytes[i]] : [64, 16, 24]);
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

function paint(canvas, width, height, colour) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...colour(i), 255], 4 * i);
  context.putImageData(image, 0, 0);
}
