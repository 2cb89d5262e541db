// The policies that the run has and could have: what their files say of themselves; nothing to press.

const $ = (id) => document.getElementById(id);

export class Policies {
  constructor() {
    $("policies").ontoggle = () => $("policies").open && this.list();
  }

  async list() {
    $("policies-note").textContent = "reading";
    const answer = await fetch("/policies").catch(() => null);
    const text = await answer?.text().catch(() => "") ?? "";
    const rows = answer?.ok ? text.split("\n").filter(Boolean).map((line) => JSON.parse(line)) : [];
    $("policies-note").textContent = !answer ? "no connection" : !answer.ok ? text
      : "A run keeps the policy that it was started with; another one wants another run: plexus run … --policy FILE";
    $("policies-list").replaceChildren(...rows.map((row) => this.item(row)));
  }

  item({file, loaded, name, why, signed, unsigned, ranges, facts}) {
    const item = document.createElement("details"), title = document.createElement("summary"), list = document.createElement("dl");
    title.textContent = `${name || file}${loaded ? ", of this run" : ""}${why ? ", does not fit" : ""}`;
    const span = ([low, high]) => `${low} to ${high}`;
    const rows = {
      file, "does not fit": why, signed: signed && `by ${signed}`, "not signed": unsigned,
      ...Object.fromEntries(Object.entries(ranges).map(([axis, range]) => [`may be told ${axis}`, span(range)])), ...facts,
    };
    for (const [label, value] of Object.entries(rows).filter(([, v]) => v !== "")) {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = label; dd.textContent = value;
      list.append(dt, dd);
    }
    item.append(title, list);
    return item;
  }
}
