// Which policy is loaded, what others there are by their files' own words, and choosing one of them.

const $ = (id) => document.getElementById(id);

export class Policies {
  /** Args: choose(id), called when a policy is chosen. */
  constructor(choose) {
    this.choose = choose;
    this.items = [];
    $("policies").ontoggle = () => $("policies").open && this.list();
  }

  async list() {
    $("policies-note").textContent = "trying each file: some seconds";
    const answer = await fetch("/policies").catch(() => null);
    const text = await answer?.text().catch(() => "") ?? "";
    const rows = answer?.ok ? text.split("\n").filter(Boolean).map((line) => JSON.parse(line)) : [];
    $("policies-note").textContent = !answer ? "no connection" : !answer.ok ? text : rows.length ? "" : "there is none";
    this.items = rows.map((row) => this.item(row));
    $("policies-list").replaceChildren(...this.items.map(({item}) => item));
    if (this.last) this.show(...this.last);
  }

  item({file, id, name, why, signed, unsigned, ranges, facts}) {
    const item = document.createElement("div"), card = document.createElement("details"), list = document.createElement("dl");
    const title = document.createElement("summary"), button = document.createElement("button");
    title.textContent = name || file;
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
    card.append(title, list);
    button.type = "button";
    button.onclick = () => { button.blur(); this.choose(id); };
    item.className = "policy"; item.dataset.policy = id;
    item.append(button, card); // the button floats beside the card's title
    return {item, button, id, why};
  }

  show(all, you) {
    this.last = [all, you];
    const loaded = all.policy?.id, {id, state, text} = all.change ?? {};
    put($("policy-now"), all.policy ? `${all.policy.name} on ${all.policy.provider}` : "none");
    put($("policy-change"), state === "LOADING" ? `loading another: ${text}` : state === "REFUSED" ? `not changed: ${text}` : "");
    $("policy-change").className = state === "REFUSED" ? "bad" : "warn";
    put($("policies-why"), you.choose && state !== "LOADING" ? `Not now: ${you.choose}.` : "");
    for (const one of this.items) {
      one.button.disabled = !!you.choose || !!one.why || one.id === loaded;
      put(one.button, state === "LOADING" && one.id === id ? "loading" : one.id === loaded ? "loaded" : one.why ? "does not fit" : "Load");
    }
  }
}

function put(element, text) { if (element.textContent !== text) element.textContent = text; }
