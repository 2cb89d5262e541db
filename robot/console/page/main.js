// Joins the page's parts: what the server says goes to panels, picture and plots; what hands do, back.

import {Arms} from "./arms.js";
import {Drive} from "./drive.js";
import {Eyes} from "./eyes.js";
import {Hands} from "./hands.js";
import {Link} from "./link.js";
import {ASK, Panels} from "./panels.js";
import {Plots} from "./plots.js";
import {Policies} from "./policies.js";
import {Recording} from "./recording.js";
import {Replay} from "./replay.js";
import {View} from "./view.js";

const $ = (id) => document.getElementById(id);
if (location.search) history.replaceState(null, "", "/"); // the token has done its work

const view = new View($("view"), $("scene-note"));
const plots = new Plots($("plots"), $("signal-add"));
const eyes = new Eyes($("eyes"), (camera) => link.send({t: "seen", camera}));
const panels = new Panels((name) => link.ask(ASK[name]));
const replay = new Replay(view, (on) => { drive.release(); view.ground(!on); link.send({t: "watch", replay: on}); });
const policies = new Policies((id) => link.send({t: "choose", policy: id}));
const recording = new Recording((message) => link.send(message), (id) => replay.open(id));
const link = new Link({
  link(open) {
    if (!open) { drive.release(); drive.active = false; }
    else if (replay.on) link.send({t: "watch", replay: true}); // to the server this page is a new one
    panels.link(open);
    recording.link(open);
  },
  hello(hello) {
    panels.load(hello);
    view.load(hello.geoms, hello.floor);
    if (replay.on) view.ground(false);
    plots.load(hello.joints);
    arms.load(hello.arms, hello.joints, hello.position_limit);
    hands.load(hello.arms.hands);
    const roles = ["observe", "drive", "arm"];
    $("invite").replaceChildren("a link for another browser that may", ...roles.slice(0, roles.indexOf(hello.role) + 1).map((role, i) => {
      const button = document.createElement("button");
      button.type = "button"; button.id = `invite-${role}`; button.textContent = role;
      button.onclick = () => link.send({t: "invite", role: i + 1});
      return button;
    }));
    $("rehearse").hidden = !hello.simulated || hello.role !== "arm";
  },
  state({all, you}) {
    if (replay.on && you.drives) replay.close(); // the server let it drive: it sees what it drives
    drive.active = you.drives && !replay.on;
    recording.state(all, you);
    policies.show(all, you);
    panels.show(all, you);
    plots.hear(all);
    eyes.age();
    arms.show(all.arms, all.q, you.drives);
    $("hud").textContent = [view.words(), drive.padNote].filter(Boolean).join("\n");
  },
  pose(poses, taken) { if (!replay.on) { view.show(poses, taken); hands.place(poses, drive.active); } },
  camera(picture) { eyes.camera(picture); },
  ground(map) { eyes.show(map); },
  events({events}) { panels.events(events); },
  answer(answer) { panels.answer(answer); },
  invite({role, address}) { $("invite-link").textContent = `${address}  (once, to ${role}, for ten minutes)`; },
});
const stop = () => { link.stop(ASK.ESTOP); drive.release(); };
const drive = new Drive((sample) => link.send(sample), stop);
const arms = new Arms(drive);
const hands = new Hands($("scene"), view, drive);

$("stop").addEventListener("pointerdown", (event) => { event.preventDefault(); stop(); });
$("stop").addEventListener("click", (event) => event.detail === 0 && stop()); // by Enter
$("speed").oninput = () => { drive.speed = $("speed").value / 100; $("speed-out").textContent = `${$("speed").value} %`; };
$("rehearse").querySelector("button").onclick = () => {
  const value = (name) => Number($("rehearse").elements[name].value);
  link.send({t: "rehearse", delay_ms: value("delay"), jitter_ms: value("jitter"), loss: value("loss") / 100});
};
