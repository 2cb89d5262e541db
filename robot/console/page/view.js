// The picture of the robot: where the eye is, and what is painted next. A worker paints, so that keys
// never wait for a picture; where a browser cannot, the page itself does.

import {look, multiply, perspective} from "./space.js";
import {Painter} from "./paint.js";

export class View {
  /** Args: canvas; note, an element that says what is wrong. */
  constructor(canvas, note) {
    this.canvas = canvas;
    this.azimuth = 2.4; this.elevation = 0.22; this.distance = 2.6;
    this.focus = [0, 0, 0.65];
    this.frames = []; // times of the last pictures, ms
    this.taken = this.age = NaN; // of what the last one shows: when it was so, and how old that was when painted, ms
    this.camera = null; // from world to picture, of the newest scene
    const fails = () => { note.textContent = "this browser has no WebGL2, so no picture; everything else works"; note.hidden = false; };
    try {
      this.tell = this.employ(canvas, (taken) => this.drawn(taken), fails);
    } catch {
      return void fails();
    }
    [this.width, this.height] = [canvas.clientWidth, canvas.clientHeight];
    // Asking an element for its size after a change elsewhere costs a layout; being told costs nothing.
    new ResizeObserver(() => [this.width, this.height] = [canvas.clientWidth, canvas.clientHeight]).observe(canvas);
    this.orbit();
  }

  /** A painter of its own if that may be. Returns what takes its orders; throws where nothing can paint. */
  employ(canvas, drawn, fails) {
    if (!globalThis.OffscreenCanvas || !new OffscreenCanvas(1, 1).getContext("webgl2")) {
      const painter = new Painter(canvas, drawn);
      return ({geoms, floor, scene}) => geoms ? painter.load(geoms, floor) : painter.show(scene);
    }
    const worker = new Worker("worker.js", {type: "module"}), offscreen = canvas.transferControlToOffscreen();
    worker.onmessage = ({data}) => drawn(data); worker.onerror = fails;
    worker.postMessage({canvas: offscreen}, [offscreen]);
    return (order) => worker.postMessage(order);
  }

  /** Args: geoms and floor, as the server's hello has them. */
  load(geoms, floor) {
    this.geoms = geoms; this.floor = floor;
    this.ground(true);
  }

  /** Show the ground of the run, or a flat one, where nobody knows which it was. */
  ground(known) {
    if (known) this.tell?.({geoms: this.geoms, floor: this.floor});
    else this.tell?.({geoms: this.geoms.filter(({body}) => body >= 0), floor: 0});
  }

  /** Paint this next. Args: poses, 7 numbers per body: position and quaternion wxyz; taken, ms of this
   *  browser's clock at which the robot was so, NaN where nobody knows. */
  show(poses, taken = NaN) {
    if (!this.tell || !this.width || !this.height) return;
    const target = [poses[0], poses[1], Math.max(0.35, poses[2] * 0.85)];
    this.focus = this.focus.map((v, i) => v + (target[i] - v) * 0.2);
    const c = Math.cos(this.elevation);
    const eye = [c * Math.cos(this.azimuth), c * Math.sin(this.azimuth), Math.sin(this.elevation)].map((v, i) => this.focus[i] + this.distance * v);
    this.camera = multiply(perspective(0.75, this.width / this.height, 0.1, 40), look(eye, this.focus));
    const {camera, width, height} = this;
    this.tell({scene: {poses, camera, eye, width, height, taken, most: devicePixelRatio}});
  }

  drawn(taken) {
    const now = performance.now();
    this.taken = taken; this.age = now - taken;
    this.frames.push(now);
    while (this.frames[0] < now - 2000) this.frames.shift();
  }

  /** Pictures per second, of the last two seconds; 0 while none comes. */
  get rate() {
    const {frames} = this, old = performance.now() - 2000;
    return frames.length > 1 && frames.at(-1) > old ? 1000 * (frames.length - 1) / (frames.at(-1) - frames[0]) : 0;
  }

  /** Rate and age, for people: from the robot to this browser's painter, without the screen's own delay. */
  words() {
    if (!this.tell) return "";
    if (!this.rate) return Number.isFinite(this.taken) ? `picture ${((performance.now() - this.taken) / 1000).toFixed(0)} s old` : "no picture yet";
    return `${this.rate.toFixed(0)} pictures/s${Number.isFinite(this.age) ? `, ${this.age.toFixed(0)} ms old` : ""}`;
  }

  orbit() {
    this.canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      this.azimuth -= event.movementX * 0.008;
      this.elevation = Math.max(-0.05, Math.min(1.5, this.elevation + event.movementY * 0.006));
    });
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.distance = Math.max(1, Math.min(9, this.distance * Math.exp(event.deltaY * 0.001)));
    }, {passive: false});
  }
}
