// Draws the robot from its visual primitives with WebGL2: one instanced call per form, a floor with
// a grid, and a soft shadow under the robot. It knows no page, so that it can work beside one.

import {compose, turn} from "./space.js";

const VERTEX = `#version 300 es
layout(location=0) in vec4 corner;    // xyz of a unit form; w: which end of a capsule, -1, 0, 1
layout(location=1) in vec3 normal;
layout(location=2) in vec3 position;  // of the instance, world
layout(location=3) in vec4 rotation;  // quaternion wxyz
layout(location=4) in vec4 size;      // half extents; w: half length between a capsule's ends
layout(location=5) in vec3 colour;
uniform mat4 camera;
out vec3 world, surface, tint;
vec3 turn(vec4 q, vec3 v) { return v + 2.0 * cross(q.yzw, cross(q.yzw, v) + q.x * v); }
void main() {
  world = position + turn(rotation, corner.xyz * size.xyz + vec3(0.0, 0.0, corner.w * size.w));
  surface = turn(rotation, normal / size.xyz);
  tint = colour;
  gl_Position = camera * vec4(world, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec3 world, surface, tint;
uniform vec3 eye, centre;
out vec4 result;
void main() {
  vec3 n = normalize(surface), sun = normalize(vec3(0.4, 0.5, 0.9)), view = normalize(eye - world);
  float light = max(dot(n, sun), 0.0) * 0.75 + 0.32 + 0.20 * n.z;
  float shine = pow(max(dot(n, normalize(sun + view)), 0.0), 40.0) * 0.35;
  float rim = pow(1.0 - max(dot(n, view), 0.0), 3.0) * 0.22;
  vec3 lit = pow(max(tint, 0.02), vec3(0.8)) * light + shine + rim * vec3(0.5, 0.7, 1.0);
  result = vec4(mix(lit, vec3(0.063, 0.086, 0.118), smoothstep(2.5, 9.0, length(world.xy - centre.xy))), 1.0);
}`;
const FLOOR_VERTEX = `#version 300 es
layout(location=0) in vec2 corner;
uniform mat4 camera; uniform vec3 centre; uniform float level;
out vec2 place;
void main() { place = centre.xy + corner * 12.0; gl_Position = camera * vec4(place, level, 1.0); }`;
const FLOOR_FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
uniform vec3 centre;
out vec4 result;
float line(vec2 p, float step) {
  vec2 d = abs(fract(p / step - 0.5) - 0.5) * step / max(fwidth(p), 1e-5);
  return 1.0 - min(min(d.x, d.y), 1.0);
}
void main() {
  float r = length(place - centre.xy);
  vec3 ground = vec3(0.075, 0.10, 0.13) + 0.05 * line(place, 0.5) + 0.10 * line(place, 1.0);
  if (abs(place.y) < 0.012) ground += vec3(0.20, 0.05, 0.04);
  if (abs(place.x) < 0.012) ground += vec3(0.04, 0.18, 0.06);
  ground *= 1.0 - 0.65 * exp(-r * r * 14.0) * exp(-max(centre.z - 0.75, 0.0) * 3.0);
  result = vec4(mix(ground, vec3(0.063, 0.086, 0.118), smoothstep(2.5, 9.0, r)), 1.0);
}`;
const STRIDE = 14; // floats per instance: position, rotation, size, colour
const MOST_PIXELS = 1.5, LEAST_PIXELS = 0.3; // per CSS pixel
const SLOW_MS = 45, FAST_MS = 38; // from picture to picture; poses come every 30 ms

/** Unit forms as [x, y, z, end, nx, ny, nz] corners of triangles. */
const FORMS = {
  sphere: () => round(14, 8, false),
  capsule: () => round(14, 8, true),
  cylinder() {
    const out = [];
    for (let i = 0; i < 24; i++) {
      const [a, b] = [i, i + 1].map((k) => [Math.cos(k * Math.PI / 12), Math.sin(k * Math.PI / 12)]);
      const side = (p, z) => [...p, z, 0, ...p, 0], cap = (p, z) => [...p, z, 0, 0, 0, z];
      out.push(side(a, -1), side(b, -1), side(b, 1), side(a, -1), side(b, 1), side(a, 1));
      out.push(cap([0, 0], 1), cap(a, 1), cap(b, 1), cap([0, 0], -1), cap(b, -1), cap(a, -1));
    }
    return out.flat();
  },
  box() {
    const out = [];
    for (let axis = 0; axis < 3; axis++) for (const s of [-1, 1]) {
      const corner = (u, v) => {
        const p = [0, 0, 0], n = [0, 0, 0];
        p[axis] = n[axis] = s; p[(axis + 1) % 3] = u * s; p[(axis + 2) % 3] = v;
        return [...p, 0, ...n];
      };
      for (const [u, v] of [[-1, -1], [1, -1], [1, 1], [-1, -1], [1, 1], [-1, 1]]) out.push(corner(u, v));
    }
    return out.flat();
  },
};

function round(slices, stacks, capsule) {
  const out = [], point = (i, j) => {
    const a = 2 * Math.PI * i / slices, b = Math.PI * (j / stacks - 0.5), c = Math.cos(b);
    const p = [c * Math.cos(a), c * Math.sin(a), Math.sin(b)];
    return [...p, capsule ? (j * 2 < stacks ? -1 : 1) : 0, ...p];
  };
  // A capsule's wall needs the middle ring at both ends.
  const rings = [...Array(stacks + 1).keys()];
  for (let j = 0; j < stacks; j++) for (let i = 0; i < slices; i++) {
    const [a, b, c, d] = [point(i, rings[j]), point(i + 1, rings[j]), point(i + 1, rings[j + 1]), point(i, rings[j + 1])];
    out.push(a, b, c, a, c, d);
  }
  return out.flat();
}

export class Painter {
  /** Args: canvas, of a page or offscreen; drawn(taken), called after each picture. Throws where there is no WebGL2. */
  constructor(canvas, drawn) {
    this.canvas = canvas; this.drawn = drawn;
    this.fences = []; // of pictures that are being made
    const software = drawnInSoftware();
    this.ratio = software ? 0.5 : MOST_PIXELS;
    this.gl = canvas.getContext("webgl2", {antialias: !software, powerPreference: "low-power"});
    if (!this.gl) throw new Error("this browser has no WebGL2");
    this.shapes = program(this.gl, VERTEX, FRAGMENT);
    this.floor = program(this.gl, FLOOR_VERTEX, FLOOR_FRAGMENT);
    this.floorArray = this.gl.createVertexArray();
    this.gl.bindVertexArray(this.floorArray);
    fill(this.gl, new Float32Array([-1, -1, 1, -1, 1, 1, -1, -1, 1, 1, -1, 1]), [[0, 2]], 2, 0);
    this.sets = [];
  }

  /** Args: geoms, rows as the server has them, body -1 for what stands in the world; floor, m. */
  load(geoms, floor) {
    this.level = floor;
    this.sets = Object.keys(FORMS).map((form) => {
      const gl = this.gl, rows = geoms.filter((g) => g.form === form), array = gl.createVertexArray();
      gl.bindVertexArray(array);
      const corners = new Float32Array(FORMS[form]());
      fill(gl, corners, [[0, 4], [1, 3]], 7, 0);
      const data = new Float32Array(rows.length * STRIDE);
      rows.forEach((g, i) => data.set([...g.pos, ...g.quat, ...g.size, g.ends, ...g.rgb], i * STRIDE));
      const buffer = fill(gl, data, [[2, 3], [3, 4], [4, 4], [5, 3]], STRIDE, 1);
      return {rows, array, data, buffer, corners: corners.length / 7};
    });
  }

  /** Draw this next. Args: a scene of poses (7 numbers per body), camera and eye, width and height in
   *  CSS pixels, most, the screen's pixels in one of those, and taken, which comes back. One that is not drawn yet gives way. */
  show(scene) {
    const waits = !!this.scene;
    this.scene = scene;
    if (!waits) requestAnimationFrame(() => this.pace());
  }

  /** Draw, unless two pictures are still being made: they must not queue. */
  pace() {
    const {gl} = this, now = performance.now();
    if (this.fences[0] && gl.clientWaitSync(this.fences[0], gl.SYNC_FLUSH_COMMANDS_BIT, 0) !== gl.TIMEOUT_EXPIRED)
      gl.deleteSync(this.fences.shift());
    if (this.fences.length > 1) return void requestAnimationFrame(() => this.pace());
    this.draw(this.scene);
    this.fences.push(gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0));
    if (this.last !== undefined) this.fit(now - this.last, this.scene.most);
    this.last = now;
    const {taken} = this.scene;
    this.scene = null;
    this.drawn(taken);
  }

  /** Fewer pixels where pictures take long, more where there is time. Args: ms since the last began. */
  fit(took, most) {
    this.took = 0.9 * (this.took ?? took) + 0.1 * took;
    if (this.took > SLOW_MS) this.ratio = Math.max(LEAST_PIXELS, this.ratio * 0.95);
    else if (this.took < FAST_MS) this.ratio *= 1.01;
    this.ratio = Math.min(this.ratio, most, MOST_PIXELS);
  }

  draw({poses, camera, eye, width: wide, height: high}) {
    const {gl, canvas} = this;
    const [width, height] = [wide, high].map((v) => Math.max(1, Math.round(v * this.ratio / 16) * 16));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    gl.viewport(0, 0, width, height);
    gl.clearColor(0.063, 0.086, 0.118, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.floor.program);
    gl.uniformMatrix4fv(this.floor.at("camera"), false, camera);
    gl.uniform3f(this.floor.at("centre"), poses[0], poses[1], poses[2]);
    gl.uniform1f(this.floor.at("level"), this.level);
    gl.bindVertexArray(this.floorArray);
    gl.drawArrays(gl.TRIANGLES, 0, 6);
    gl.useProgram(this.shapes.program);
    gl.uniformMatrix4fv(this.shapes.at("camera"), false, camera);
    gl.uniform3f(this.shapes.at("eye"), ...eye);
    gl.uniform3f(this.shapes.at("centre"), poses[0], poses[1], poses[2]);
    for (const set of this.sets) {
      set.rows.forEach((g, i) => {
        if (g.body < 0) return;
        const p = poses.subarray(g.body * 7, g.body * 7 + 3), q = poses.subarray(g.body * 7 + 3, g.body * 7 + 7);
        const moved = turn(q, g.pos), turned = compose(q, g.quat);
        for (let k = 0; k < 3; k++) set.data[i * STRIDE + k] = p[k] + moved[k];
        for (let k = 0; k < 4; k++) set.data[i * STRIDE + 3 + k] = turned[k];
      });
      gl.bindVertexArray(set.array);
      gl.bindBuffer(gl.ARRAY_BUFFER, set.buffer);
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, set.data);
      gl.drawArraysInstanced(gl.TRIANGLES, 0, set.corners, set.rows.length);
    }
  }
}

/** True where no graphics processor draws, as in a test. */
function drawnInSoftware() {
  const gl = globalThis.OffscreenCanvas && new OffscreenCanvas(1, 1).getContext("webgl2"), told = gl?.getExtension("WEBGL_debug_renderer_info");
  return !!told && /swiftshader|llvmpipe|software/i.test(gl.getParameter(told.UNMASKED_RENDERER_WEBGL));
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const places = {};
  return {program: made, at: (name) => places[name] ??= gl.getUniformLocation(made, name)};
}

function fill(gl, data, parts, stride, divisor) {
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, data, divisor ? gl.DYNAMIC_DRAW : gl.STATIC_DRAW);
  let at = 0;
  for (const [place, count] of parts) {
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, count, gl.FLOAT, false, stride * 4, at * 4);
    gl.vertexAttribDivisor(place, divisor);
    at += count;
  }
  return buffer;
}

