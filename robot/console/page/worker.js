// Paints beside the page, in a thread of its own.

import {Painter} from "./paint.js";

let painter;
onmessage = ({data: {canvas, geoms, floor, scene}}) => {
  if (canvas) painter = new Painter(canvas, (taken) => postMessage(taken));
  else if (geoms) painter.load(geoms, floor);
  else painter.show(scene);
};
