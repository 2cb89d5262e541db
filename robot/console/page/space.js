// Turns, and the way from world to picture: quaternions wxyz, matrices of 16 by columns.

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = (a) => a.map((v) => v / Math.hypot(...a));

/** v turned by the quaternion q, wxyz. */
export function turn(q, v) {
  const u = [q[1], q[2], q[3]], t = cross(u, v).map((x, i) => x + q[0] * v[i]), s = cross(u, t);
  return v.map((x, i) => x + 2 * s[i]);
}

/** The rotation a after b, wxyz. */
export function compose(a, b) {
  return [
    a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3], a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
    a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1], a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
  ];
}

export function perspective(angle, aspect, near, far) {
  const f = 1 / Math.tan(angle / 2), tall = aspect < 1 ? aspect : 1; // a phone upright sees as wide
  return [f * tall / aspect, 0, 0, 0, 0, f * tall, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0];
}

export function look(eye, at) {
  const z = unit(eye.map((v, i) => v - at[i])), x = unit(cross([0, 0, 1], z)), y = cross(z, x);
  return [x[0], y[0], z[0], 0, x[1], y[1], z[1], 0, x[2], y[2], z[2], 0, -dot(x, eye), -dot(y, eye), -dot(z, eye), 1];
}

export function multiply(a, b) {
  const out = new Float32Array(16);
  for (let c = 0; c < 4; c++) for (let r = 0; r < 4; r++)
    for (let k = 0; k < 4; k++) out[c * 4 + r] += a[k * 4 + r] * b[c * 4 + k];
  return out;
}
