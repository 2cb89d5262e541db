// Hold to run: keys with their real release, sticks on the screen, a gamepad, arms. Whatever is not
// physically held any more is let go: hidden tab, lost focus, a pointer that is gone.

const PERIOD_MS = 50;
const KEYS = { // key code: [forward, left, turn left]
  KeyW: [1, 0, 0], ArrowUp: [1, 0, 0], KeyS: [-1, 0, 0], ArrowDown: [-1, 0, 0],
  KeyA: [0, 1, 0], KeyD: [0, -1, 0],
  KeyQ: [0, 0, 1], ArrowLeft: [0, 0, 1], KeyE: [0, 0, -1], ArrowRight: [0, 0, -1],
};
const STOP_KEYS = new Set(["Space", "Escape"]);
const SHOULDERS = [4, 5]; // buttons of the standard gamepad: the deadman
const DEAD_ZONE = 0.12;

const clip = (v) => Math.max(-1, Math.min(1, v));

export class Drive {
  /** Args: send(sample) for each sample; stop() for the STOP keys. */
  constructor(send, stop) {
    this.send = send;
    this.active = false; // this page drives: only then are samples sent
    this.seq = 0;
    this.speed = 0.5;
    this.keys = new Set();
    this.sticks = {drive: null, side: null}; // [x, y] up and right positive while held
    this.arms = null; // where arms are drawn to, while that is held
    this.whenReleased = []; // called when everything is let go
    this.padNote = "";
    this.watchKeys(stop);
    this.stick("stick-drive", "drive");
    this.stick("stick-side", "side");
    for (const [target, name] of [[window, "blur"], [window, "pagehide"], [document, "freeze"]])
      target.addEventListener(name, () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    setInterval(() => this.active && this.sample(), PERIOD_MS);
  }

  watchKeys(stop) {
    addEventListener("keydown", (event) => {
      if (STOP_KEYS.has(event.code) && !(event.code === "Space" && writing(event.target))) {
        event.preventDefault();
        if (!event.repeat) stop();
      } else if (event.code in KEYS && !typing(event.target) && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        // A repeat is no press: after a release by lost focus the key must go up first.
        if (!event.repeat && !this.keys.has(event.code)) { this.keys.add(event.code); this.sample(); }
      }
    }, true);
    addEventListener("keyup", (event) => {
      if (STOP_KEYS.has(event.code)) event.preventDefault(); // no click on a focused button
      if (this.keys.delete(event.code)) this.sample();
    }, true);
  }

  stick(id, name) {
    const element = document.getElementById(id), knob = element.firstElementChild;
    const move = (event) => {
      const box = element.getBoundingClientRect(), reach = box.width / 2 - 20;
      let x = (event.clientX - box.left - box.width / 2) / reach;
      let y = -(event.clientY - box.top - box.height / 2) / reach;
      const length = Math.hypot(x, y);
      if (length > 1) { x /= length; y /= length; }
      this.sticks[name] = [x, y];
      knob.style.transform = `translate(${x * reach}px, ${-y * reach}px)`;
    };
    const drop = () => {
      this.sticks[name] = null;
      knob.style.transform = "";
      element.classList.remove("held");
      this.sample();
    };
    this[`drop_${name}`] = drop;
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      element.classList.add("held");
      move(event);
      this.sample();
    });
    element.addEventListener("pointermove", (event) => this.sticks[name] && move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      element.addEventListener(end, () => this.sticks[name] && drop());
    element.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Arms are drawn to a goal, as wire.py has them, or not any more (null). */
  holdArms(goal) {
    const changed = !goal !== !this.arms;
    this.arms = goal;
    if (changed) this.sample(); // the others go with the next sample
  }

  /** Let go of everything, at once. */
  release() {
    this.keys.clear();
    this.arms = null;
    for (const told of this.whenReleased) told();
    for (const name of ["drive", "side"]) if (this.sticks[name]) this[`drop_${name}`]();
    this.sample();
  }

  /** [held, forward, left, turn left] of the gamepad. */
  pad() {
    const pads = navigator.getGamepads ? [...navigator.getGamepads()].filter(Boolean) : [];
    const pad = pads.find((p) => p.mapping === "standard" && p.connected);
    this.padNote = pad ? pad.id.slice(0, 30) : pads.length ? "gamepad of unknown layout: not used" : "";
    if (!pad || !SHOULDERS.some((i) => pad.buttons[i]?.pressed)) return [false, 0, 0, 0];
    const axis = (i) => Math.abs(pad.axes[i]) < DEAD_ZONE ? 0 : pad.axes[i];
    return [true, -axis(1), -axis(0), -axis(2)]; // sticks have forward and left negative
  }

  wish() {
    const total = [0, 0, 0];
    for (const code of this.keys) KEYS[code].forEach((v, i) => total[i] += v);
    const {drive, side} = this.sticks;
    if (drive) { total[0] += drive[1]; total[2] -= drive[0]; }
    if (side) total[1] -= side[0];
    const [held, ...axes] = this.pad();
    axes.forEach((v, i) => total[i] += v);
    const deadman = !document.hidden && document.hasFocus() && (this.keys.size > 0 || !!drive || !!side || held || !!this.arms);
    return {deadman, axes: total.map((v) => deadman ? clip(v) * this.speed : 0)};
  }

  sample() {
    if (!this.active) return;
    const {deadman, axes: [x, y, yaw]} = this.wish();
    this.send({t: "drive", seq: ++this.seq, c: performance.now(), deadman, x, y, yaw, ...(deadman && this.arms && {arms: this.arms})});
  }
}

// In a text a space is a space; Esc stops there as everywhere.
const writing = (element) => element instanceof HTMLInputElement && element.type === "text";
const typing = (element) => writing(element) || element instanceof HTMLInputElement && element.type === "number";
