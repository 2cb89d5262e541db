// The connection: one WebSocket, opened again when it closes; answers pings at once; STOP by two ways.

const AGAIN_MS = 500;

export class Link {
  /** Args: handlers, a table of message kind to function; `pose` gets a Float32Array and ms of our clock. */
  constructor(handlers) {
    this.handlers = handlers;
    this.open = false;
    this.connect();
  }

  connect() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { this.open = true; this.handlers.link(true); };
    socket.onmessage = ({data}) => {
      if (data instanceof ArrayBuffer) return this.handlers.pose(new Float32Array(data, 8), new DataView(data).getFloat64(0, true));
      const message = JSON.parse(data);
      if (message.t === "ping") return this.send({t: "pong", s: message.s, c: performance.now()});
      this.handlers[message.t]?.(message);
    };
    socket.onclose = () => {
      this.open = false;
      this.handlers.link(false);
      setTimeout(() => this.connect(), AGAIN_MS);
    };
    this.socket = socket;
  }

  /** Send, unless what waits in this browser is already old: a command must not queue. True if sent. */
  send(message) {
    const may = this.open && this.socket.bufferedAmount < 4096;
    if (may) this.socket.send(JSON.stringify(message));
    return may;
  }

  ask(ask) { this.send({t: "ask", ask, c: performance.now()}); }

  /** STOP: over the WebSocket, and beside it, since either may hang. */
  stop(ask) {
    this.ask(ask);
    fetch("/stop", {method: "POST", keepalive: true, credentials: "same-origin"}).catch(() => {});
  }
}
