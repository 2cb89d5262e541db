// A handle over each hand in the picture: dragged, it is the point that the hand is drawn to.

import {whileHeld} from "./arms.js";
import {turn} from "./space.js";

const REACH = 2; // m from the pelvis; further is nowhere

export class Hands {
  /** Args: box, the element over the picture; view, which has the camera; drive, whose samples carry what is held. */
  constructor(box, view, drive) {
    this.box = box; this.view = view; this.drive = drive;
    this.handles = [];
    this.held = null; // the handle in somebody's hand
    drive.whenReleased.push(() => this.held = null);
  }

  /** Args: rows of name, body (row among the poses) and at (m in that body). */
  load(hands) {
    this.handles.forEach(({element}) => element.remove());
    this.handles = hands.map(({name, body, at}, row) => {
      const element = document.createElement("div"), handle = {row, body, at, element, point: null};
      element.className = "hand"; element.id = `hand-${name}`; element.title = `the ${name} hand`;
      whileHeld(element, () => { this.held = handle; this.send(handle); }, () => { this.held = null; this.drive.holdArms(null); });
      element.addEventListener("pointermove", (event) => this.held === handle && this.drag(handle, event));
      this.box.append(element);
      return handle;
    });
  }

  /** Put the handles where the hands are, the held one where it is drawn to. Args: poses, as the view has them. */
  place(poses, drives) {
    const {view} = this;
    this.pelvis = {at: [...poses.subarray(0, 3)], turn: [...poses.subarray(3, 7)]};
    for (const handle of this.handles) {
      if (handle !== this.held) {
        const p = poses.subarray(handle.body * 7, handle.body * 7 + 3), q = poses.subarray(handle.body * 7 + 3, handle.body * 7 + 7);
        const moved = turn(q, handle.at);
        handle.point = this.inside([p[0] + moved[0], p[1] + moved[1], p[2] + moved[2]]);
      }
      handle.element.classList.toggle("held", handle === this.held);
      handle.element.hidden = !drives || !view.camera;
      if (!handle.element.hidden) {
        const {x, y} = this.onScreen(handle.point);
        handle.element.style.transform = `translate(${x}px, ${y}px)`;
      }
    }
  }

  /** Move in the plane through the point that faces the eye, to under the pointer. */
  drag(handle, event) {
    const {camera} = this.view, box = this.box.getBoundingClientRect(), {x, y, depth} = this.onScreen(handle.point);
    const world = this.outside(handle.point);
    const shift = [2 * (event.clientX - box.left - x) / box.width, -2 * (event.clientY - box.top - y) / box.height];
    shift.forEach((share, row) => {
      const axis = [camera[row], camera[4 + row], camera[8 + row]], scale = Math.hypot(...axis);
      axis.forEach((v, i) => world[i] += share * depth * v / (scale * scale));
    });
    const point = this.inside(world), far = Math.hypot(...point);
    handle.point = point.map((v) => v * Math.min(1, REACH / far));
    this.send(handle);
  }

  send({row, point}) { this.drive.holdArms({hand: row, at: point}); }

  /** World to pelvis. */
  inside(point) {
    const {at, turn: [w, x, y, z]} = this.pelvis;
    return turn([w, -x, -y, -z], point.map((v, i) => v - at[i]));
  }

  /** Pelvis to world. */
  outside(point) {
    const {at, turn: q} = this.pelvis;
    return turn(q, point).map((v, i) => v + at[i]);
  }

  /** Pixels of the box, and m in front of the eye, of a point in the pelvis' frame. */
  onScreen(point) {
    const {view} = this, {camera} = view, p = [...this.outside(point), 1];
    const [u, v, , depth] = [0, 1, 2, 3].map((row) => p.reduce((sum, value, k) => sum + camera[4 * k + row] * value, 0));
    return {x: view.width * (u / depth + 1) / 2, y: view.height * (1 - v / depth) / 2, depth};
  }
}
