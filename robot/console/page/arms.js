// Arms: sliders and stored poses. What is held is where the arms are drawn to; let go, they stay.

const $ = (id) => document.getElementById(id);
const OFF = 0.4, OFF_MS = 3000; // rad and ms that arms may be away from where they are told to be
const ENDS = ["pointerup", "pointercancel", "lostpointercapture"];

/** Call begin(event) when the element is pressed, end() once it is not any more.
 *  One that was disabled or hidden meanwhile may never hear of its end: the next press begins anew. */
export function whileHeld(element, begin, end) {
  let pointer = null;
  element.addEventListener("pointerdown", (event) => {
    if (element.disabled) return;
    pointer = event.pointerId;
    element.setPointerCapture(pointer);
    begin(event);
  });
  for (const name of ENDS) element.addEventListener(name, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    end();
  });
  element.addEventListener("contextmenu", (event) => event.preventDefault());
}

export class Arms {
  /** Args: drive, whose samples carry what is held. */
  constructor(drive) {
    this.drive = drive;
    this.sliders = [];
    this.held = new Map(); // row of the arm joints: rad
    drive.whenReleased.push(() => this.held.clear());
  }

  /** Args: as the server's hello has them; rows of the arm joints among joints and limits. */
  load({rows, poses}, joints, limits) {
    this.rows = rows;
    this.sliders = rows.map((joint, row) => {
      const line = document.createElement("label"), slider = document.createElement("input"), value = document.createElement("output");
      slider.type = "range"; slider.step = 0.01; slider.disabled = true; slider.id = `arm-${joints[joint]}`;
      [slider.min, slider.max] = limits[joint];
      whileHeld(slider, () => this.hold(row, slider), () => this.drop(row));
      slider.addEventListener("input", () => this.held.has(row) && this.hold(row, slider));
      line.append(joints[joint].replace(/_joint$/, "").replaceAll("_", " "), slider, value);
      return {line, slider, value};
    });
    $("arm-sliders").replaceChildren(...this.sliders.map(({line}) => line));
    $("arm-poses").replaceChildren(...poses.map(({name, doc}, row) => {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = name; button.title = doc; button.disabled = true;
      whileHeld(button, () => this.drive.holdArms({pose: row}), () => this.drive.holdArms(null));
      return button;
    }));
  }

  hold(row, slider) {
    this.held.set(row, Number(slider.value));
    this.drive.holdArms({joints: [...this.held]});
  }

  drop(row) {
    this.held.delete(row);
    this.drive.holdArms(this.held.size ? {joints: [...this.held]} : null);
  }

  /** Args: told, rad of each arm joint in control; all joints' measured rad; whether this page drives. */
  show(told, measured, drives) {
    if (!drives && this.drive.arms) this.drive.release(); // what is still held counts no more
    const can = drives && !!told && !!measured; // a slider that does not show where the arm is moves nothing
    for (const {slider} of this.sliders) slider.disabled = !can;
    for (const button of $("arm-poses").children) button.disabled = !can;
    if (!told || !measured) return;
    let away = 0;
    this.sliders.forEach(({slider, value}, row) => {
      const at = measured[this.rows[row]];
      if (!this.held.has(row)) slider.value = told[row];
      value.textContent = at === null ? "–" : at.toFixed(2);
      away = Math.max(away, Math.abs(told[row] - at));
    });
    if (away < OFF) this.fine = performance.now();
    $("arms-note").textContent = performance.now() - (this.fine ?? 0) > OFF_MS ? "The arms are not where they are told to be: this policy may not follow them."
      : "Arms move while you hold a slider, a pose, or a hand in the picture.";
  }
}
