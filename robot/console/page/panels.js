// What stands beside the picture: mode, buttons with the reason why not, figures, joints, events.

const $ = (id) => document.getElementById(id);
const LOOK = {POLICY: "go", STAND: "ready", STANDUP: "ready", DAMP: "warn", HOLD: "warn", SOFT_STOP: "warn", FAULT: "bad", ESTOP: "bad", PASSIVE: "", "": "bad"};
const ASK = {ACQUIRE: 1, RELEASE: 2, ARM: 3, DISARM: 4, STAND_UP: 5, START_POLICY: 6, HOLD: 7, STAND: 9, SOFT_STOP: 10, ESTOP: 11, RESET: 12};
const BUTTONS = {
  ACQUIRE: "Take control", RELEASE: "Release control", RESET: "Reset", ARM: "Arm", STAND_UP: "Stand up",
  START_POLICY: "Start policy", HOLD: "Hold", STAND: "Stand stiffly", SOFT_STOP: "Soft stop", DISARM: "Disarm",
};
const WAY = ["ACQUIRE", "RESET", "ARM", "STAND_UP", "START_POLICY"]; // the first allowed one is the next step
const NEAR = 0.1, AT = 0.02; // rad to a limit

export {ASK};

export class Panels {
  /** Args: ask(name), called when a button is pressed. */
  constructor(ask) {
    this.buttons = {};
    for (const [name, label] of Object.entries(BUTTONS)) {
      const button = document.createElement("button"), why = document.createElement("small");
      button.type = "button"; button.id = `ask-${name}`;
      button.append(label, why);
      button.onclick = () => { button.blur(); ask(name); };
      $("buttons").append(button);
      this.buttons[name] = {button, why};
    }
  }

  load(hello) {
    this.hello = hello;
    const rows = hello.joints.map((name) => {
      const row = document.createElement("tr");
      row.innerHTML = "<td></td><td></td><td></td><td></td><td></td>";
      row.cells[0].textContent = name.replace(/_joint$/, "").replaceAll("_", " ");
      return row;
    });
    $("joints").tBodies[0].replaceChildren(...rows);
    this.rows = rows;
    document.title = `Plexus · ${hello.robot} · ${hello.run}`;
  }

  link(open) {
    chip("chip-link", open ? "connected" : "not connected", open ? "good" : "bad");
    if (open) return;
    $("mode").className = "mode bad"; $("mode-word").textContent = "NO LINK";
    $("mode-what").textContent = "this page is cut off: the robot holds by itself; trying again. After a restart, open the run's new address";
    for (const {button} of Object.values(this.buttons)) button.disabled = true;
  }

  show(all, you) {
    $("mode").className = `mode ${LOOK[all.mode] ?? ""}`;
    put($("mode-word"), all.mode || "NO CONTROL");
    put($("mode-what"), all.reason || all.what);
    chip("chip-driver", you.drives ? "you drive" : all.driver === "nobody" || !all.driver ? "nobody drives" : `${all.driver} drives`, you.drives ? "good" : "");
    chip("chip-you", `${this.hello.name} · ${this.hello.role} · ${you.pages} here`);
    const age = all.ages_ms?.command ?? null, limits = this.hello.limits_ms;
    chip("chip-age", age === null || age < 0 ? "no command" : `command ${age.toFixed(0)} ms old at control`, age === null || age < 0 ? "" : age < limits.full ? "good" : age < limits.zero ? "warn" : "bad");
    this.showButtons(you);
    this.showDeadman(all, you);
    this.showFigures(all, you);
    this.showJoints(all);
  }

  showButtons(you) {
    const next = WAY.find((name) => !you.why[name]);
    for (const [name, {button, why}] of Object.entries(this.buttons)) {
      button.disabled = !!you.why[name];
      button.classList.toggle("next", name === next);
      put(why, you.why[name]);
    }
    if (you.note && you.note !== this.note) note(you.note);
    this.note = you.note;
  }

  showDeadman(all, you) {
    const text = !you.drives ? "Take control to drive."
      : you.engaged ? `Driving at ${Math.round(you.share * 100)} % of the chosen speed.`
      : !you.neutral ? "Let go of everything once."
      : all.mode === "HOLD" || all.mode === "POLICY" ? "Hold a key or stick to move." : "Start the policy to move.";
    put($("deadman"), text);
    $("deadman").className = you.engaged ? "good" : you.drives && !you.neutral ? "warn" : "";
    for (const id of ["stick-drive", "stick-side"]) $(id).classList.toggle("off", !you.drives);
    put($("stop-what"), you.stop_ms >= 0 ? `your last stop was acknowledged after ${you.stop_ms.toFixed(0)} ms`
      : "stop drill: press once before the first arming");
  }

  showFigures(all, you) {
    const c = all.control, t = all.truth, p = all.policy, log = all.log, factor = this.hello.timing_factor;
    const rows = {
      faults: all.faults?.join(", ") || "none",
      "not armed because of": all.mode === "PASSIVE" && all.forbids?.length ? all.forbids.join(", ") : null,
      control: c && `${c.rate} ticks/s, ${c.skipped} skipped`,
      lateness: c && `p50 ${c.late_p50_us} µs, worst ${c.late_max_us} µs`,
      "ages at control": all.ages_ms && `state ${ms(all.ages_ms.state)}, target ${ms(all.ages_ms.target)}`,
      "your sample": you.drives ? `${you.age_ms} ms old ± ${you.bound_ms ?? "–"} ms` : null,
      "accepted velocity": all.accepted?.map((v) => v?.toFixed(2)).join("  "),
      "true speed": t && `${t.speed} m/s at x ${t.pos[0].toFixed(2)}, y ${t.pos[1].toFixed(2)}`,
      gantry: t && (t.gantry_n === null ? "let go" : `carries ${t.gantry_n} N`),
      policy: p ? `${p.name} on ${p.provider}` : "none",
      "its range": p && p.min.map((low, i) => `${low}..${p.max[i]}`).join("  "),
      log: log && (log.warning || `${log.mb} MB in ${log.folder}${log.lost ? `, ${log.lost} lost` : ""}`),
      refused: `${all.dropped ?? 0} frames, ${all.blocked ?? 0} contents, ${you.refused} of yours`,
      "time limits": factor === 1 ? null : `× ${factor} (simulation)`,
      "bad network": all.rehearsed ? "rehearsed" : null,
    };
    const shown = Object.entries(rows).filter(([, v]) => v), names = shown.map(([name]) => name).join();
    if (names !== this.figures) $("figures").replaceChildren(...shown.flatMap(([name]) => {
      const dt = document.createElement("dt");
      dt.textContent = name;
      return [dt, document.createElement("dd")];
    }));
    this.figures = names;
    const values = $("figures").querySelectorAll("dd");
    shown.forEach(([, value], i) => put(values[i], value));
  }

  showJoints(all) {
    if (!all.q || !this.rows) return;
    this.rows.forEach((row, i) => {
      const [low, high] = this.hello.position_limit[i], q = all.q[i], room = Math.min(q - low, high - q);
      [q, all.dq[i], all.tau[i]].forEach((v, k) => put(row.cells[k + 1], v === null ? "not a number" : v.toFixed(k === 2 ? 1 : 2)));
      put(row.cells[4], q === null ? "–" : room.toFixed(2));
      row.cells[4].className = room < AT ? "at" : room < NEAR ? "near" : "";
    });
  }

  events(events) {
    $("events").replaceChildren(...events.toReversed().map(({at, text, kind}) => {
      const item = document.createElement("li"), time = document.createElement("time"), words = document.createElement("span");
      time.textContent = at; words.textContent = text; words.className = kind;
      item.append(time, words);
      return item;
    }));
  }

  answer({ask, ok, reason, ms: took}) {
    if (!ok) note(reason);
    else note(ask === "ESTOP" ? `STOP acknowledged by control after ${took.toFixed(0)} ms` : "", true);
  }
}

export function note(text, good = false) {
  $("note").textContent = text;
  $("note").className = good ? "good" : "";
}

function chip(id, text, kind = "") {
  put($(id), text);
  $(id).className = `chip ${kind}`;
}

/** Text into an element; what stands there already is no change, and costs no layout. */
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const ms = (v) => v === null || v < 0 ? "none" : `${Math.round(v)} ms`;
