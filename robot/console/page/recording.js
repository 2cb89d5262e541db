// What is kept: whether the run is logged, remarks into its log, and the list of earlier runs.

const $ = (id) => document.getElementById(id);

export class Recording {
  /** Args: send(message), to the server, true if it went out; show(id), which opens a replay and tells why it did not. */
  constructor(send, show) {
    this.show = show;
    this.episode = false;
    const mark = (kind) => {
      if ($("mark").disabled) return; // the field never is: a person may be in the middle of a word
      if (send({t: "mark", kind, note: $("mark-note").value, c: performance.now()})) $("mark-note").value = "";
    };
    $("mark").onclick = () => mark("mark");
    $("episode").onclick = () => mark(this.episode ? "end" : "begin");
    $("mark-note").onkeydown = (event) => { if (event.key === "Enter" && !event.repeat) mark("mark"); };
    $("runs").ontoggle = () => $("runs").open && this.list();
    $("runs-again").onclick = () => this.list();
  }

  link(open) {
    if (open) return; // the next state says what may be marked
    for (const id of ["mark", "episode"]) $(id).disabled = true;
  }

  /** What the server says of the log, and of what this page may. */
  state(all, you) {
    const {why, episode_s: seconds, episode} = you.marks, log = all.log;
    this.episode = seconds !== null;
    const text = why && !log ? why : log?.warning ? log.warning
      : log ? `logged: ${log.mb} MB in ${log.folder}${log.lost ? `, ${log.lost} messages lost` : ""}` : "";
    $("logged").textContent = why && why !== text ? `${text}${text && "; "}${why}` : text;
    $("logged").className = why || log?.warning || log?.lost ? "warn" : "good";
    $("episode").textContent = this.episode ? "End the episode" : "Begin an episode";
    $("episode-note").textContent = this.episode ? `episode ${episode ? `"${episode}"` : ""} for ${seconds} s` : "";
    for (const id of ["mark", "episode"]) $(id).disabled = !!why;
    this.allow(you);
  }

  allow(you) {
    const why = you.drives ? "release control first" : "";
    for (const button of document.querySelectorAll("#runs tbody button")) { button.disabled = !!why; button.title = why; }
  }

  async list() {
    const answer = await fetch("/runs").catch(() => null);
    const body = $("runs").querySelector("tbody"), text = answer?.ok ? await answer.text().catch(() => "") : "";
    $("runs-note").textContent = answer?.ok ? text ? "" : "no runs yet" : answer ? await answer.text() : "no connection";
    body.replaceChildren(...text.split("\n").filter(Boolean).map((line) => this.row(JSON.parse(line))));
  }

  row(run) {
    const row = document.createElement("tr"), show = document.createElement("button"), load = document.createElement("a");
    const cells = [run.name, run.start.replace("T", " ").replace("Z", " UTC"), `${run.duration_s.toFixed(1)} s`, `${(run.size / 1e6).toFixed(1)} MB`, run.state, run.policy];
    for (const text of cells) row.insertCell().textContent = text;
    show.type = "button"; show.textContent = "Replay";
    show.onclick = async () => { $("runs-note").textContent = await this.show(run.id); };
    load.href = `/runs/${run.id}/archive`; load.textContent = "Download"; load.download = "";
    row.insertCell().append(show, load);
    return row;
  }
}
