// <kinemic-skeleton>: moving skeletons, put into the page by kinemic.viz.viewer. data-motion is {fps, head, colors,
// bones: [[parent, child, side]], clips: [{title, frames, data: base64 of int16 mm (frames, joints, 3)}]} and, of the first
// clip, attention, window and segments; side is 0 trunk, 1 left, 2 right.
customElements.get("kinemic-skeleton") || (() => {
const STYLE = `:host{display:block;margin:.6em 0;padding:4px;border-radius:10px;font:13px/1.4 system-ui,sans-serif}
:host(:focus-visible),:focus-visible{outline:2px solid var(--pst-color-primary,#3a80d2);outline-offset:-2px}
div{display:flex;flex-wrap:wrap;gap:8px;margin-bottom:6px}.bar{align-items:center}figure{flex:1 1 230px;min-width:0;margin:0;text-align:center}
canvas{display:block;width:100%;border-radius:8px}figure canvas{background:#8881;cursor:grab;touch-action:pan-y}
.line{flex:1 1 120px;min-width:0;cursor:ew-resize;touch-action:none}output{font-variant-numeric:tabular-nums}
button{font:inherit;color:inherit;background:none;border:1px solid #888;border-radius:6px;width:44px;height:30px}
b{margin-right:14px}@media print{.bar{display:none}}`;
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const make = (parent, tag, props) => parent.appendChild(Object.assign(document.createElement(tag), props));

const surface = canvas => {
  const w = canvas.clientWidth, h = canvas.clientHeight, ratio = devicePixelRatio, g = canvas.getContext("2d");
  Object.assign(canvas, {width: w * ratio, height: h * ratio});  // also clears
  g.scale(ratio, ratio);
  g.lineCap = g.lineJoin = "round";
  const stroke = (strokeStyle, lineWidth, globalAlpha, ...paths) => {
    Object.assign(g, {strokeStyle, lineWidth, globalAlpha});
    g.beginPath();
    for (const path of paths) path.forEach((p, k) => g[k ? "lineTo" : "moveTo"](p[0], p[1]));
    g.stroke();
  };
  return [g, w, h, stroke];
};

const build = host => {
  const {fps, head, colors, bones, clips, attention, window: mined, segments} = JSON.parse(host.dataset.motion);
  const last = Math.max(...clips.map(c => c.frames)) - 1, root = host.attachShadow({mode: "open"});
  let at = 0, speed = 1, yaw = .6, pitch = .2, top = 1.6, playing, seen, held, wait, ink;
  const seek = frame => { at = clamp(Math.round(frame), 0, last); draw(); };
  const turn = (a, b) => { yaw = a; pitch = clamp(b, 0, 1.5); draw(); };
  const play = on => {
    playing = on;
    Object.assign(button, {textContent: on ? "\u275a\u275a" : "\u25b6\ufe0e", ariaLabel: on ? "Pause" : "Play"});
    run();
  };
  const run = () => {  // no animation frames while paused or off screen
    cancelAnimationFrame(wait);
    draw();
    let before = performance.now();
    const tick = now => {
      if (!held) at += clamp(now - before, 0, 100) / 1000 * fps * speed;
      if (at > last + fps / 2) at = 0;  // rests on the last pose for half a second
      before = now;
      draw();
      wait = requestAnimationFrame(tick);
    };
    if (playing && seen) wait = requestAnimationFrame(tick);
  };

  make(root, "style", {textContent: STYLE});
  const row = make(root, "div"), bar = make(root, "div", {className: "bar"}), legend = make(root, "small");
  for (const c of clips) {
    const mm = new Int16Array(Uint8Array.from(atob(c.data), s => s.charCodeAt(0)).buffer), size = mm.length / c.frames / 3;
    const points = Array.from({length: mm.length / 3}, (_, k) => [...mm.slice(3 * k, 3 * k + 3)].map(x => x / 1000));
    c.poses = Array.from({length: c.frames}, (_, f) => points.slice(f * size, f * size + size));
    c.path = c.poses.map(pose => pose[0]);
    c.poses.forEach((pose, f) => {  // one point more: where the camera looks, the root's mean over a second
      const near = c.path.slice(Math.max(0, f - 10), f + 11);
      pose.push([0, 1, 2].map(k => near.reduce((sum, p) => sum + p[k] / near.length, 0)));
      top = Math.max(top, ...pose.map(p => p[1]));
    });
    const figure = make(row, "figure"), canvas = c.canvas = make(figure, "canvas", {role: "img", ariaLabel: c.title});
    canvas.style.height = host.getAttribute("height") + "px";
    figure.append(c.title);
    let from;  // a drag turns the camera, a click plays or pauses
    canvas.onpointerdown = e => { canvas.setPointerCapture(e.pointerId); from = {x: e.x, y: e.y, yaw, pitch}; };
    canvas.onpointermove = e => {
      if (from && (from.moved ||= Math.hypot(e.x - from.x, e.y - from.y) > 4))
        turn(from.yaw + (e.x - from.x) * .01, from.pitch + (e.y - from.y) * .01);
    };
    canvas.onpointerup = () => from && !from.moved && play(!playing);
    canvas.onlostpointercapture = () => { from = null; };
  }
  const button = make(bar, "button", {onclick: () => play(!playing)});
  const slider = {className: "line", role: "slider", tabIndex: 0, ariaLabel: "Frame", ariaValueMin: 0, ariaValueMax: last};
  const line = make(bar, "canvas", slider), scrub = e => held && seek((e.offsetX - 8) / (line.clientWidth - 16) * last);
  const clock = make(bar, "output", {ariaLive: "off"});
  line.style.height = 22 + (attention || mined ? 26 : 0) + (segments ? 18 : 0) + "px";
  line.onpointerdown = e => { line.setPointerCapture(e.pointerId); held = true; scrub(e); };
  line.onpointermove = scrub;
  line.onlostpointercapture = () => { held = false; };
  make(bar, "button", {textContent: "1\u00d7", ariaLabel: "Speed", onclick: e => {
    speed = speed > .25 ? speed / 2 : 1;
    e.target.textContent = speed + "\u00d7";
  }});
  ["left", "right", attention && "attention", mined && "mined window"].forEach((textContent, k) => {
    if (textContent) make(legend, "b", {textContent, style: "color:" + colors[k]});
  });

  Object.assign(host, {tabIndex: 0, role: "group", ariaLabel: clips.map(c => c.title).join(", ")});
  host.onkeydown = e => {
    const is = key => e.key === key, x = is("ArrowRight") - is("ArrowLeft"), y = is("ArrowUp") - is("ArrowDown");
    if (e.ctrlKey || e.altKey || e.metaKey || is(" ") && e.composedPath()[0].tagName === "BUTTON") return;
    if (is(" ")) play(!playing);
    else if (e.shiftKey && (x || y)) turn(yaw + x * .15, pitch + y * .1);
    else if (x || is("Home") || is("End")) { play(false); seek(x ? Math.min(at, last) + x : is("End") * last); }
    else return;
    e.preventDefault();
    e.stopPropagation();  // notebooks have shortcuts of their own
  };

  const scene = (c, mined) => {
    const [, w, h, stroke] = surface(c.canvas), end = c.frames - 1, now = Math.min(at, end), f = Math.floor(now), u = now - f;
    const pose = c.poses[f].map((p, j) => p.map((x, k) => x + u * (c.poses[Math.min(f + 1, end)][j][k] - x)));
    const [cx, , cz] = pose.pop(), zoom = Math.min(h / (top + .45), w / 1.9), {cos, sin} = Math;
    const project = (x, y, z) => {
      x -= cx, y -= top / 2, z -= cz;
      const near = z * cos(yaw) - x * sin(yaw), depth = near * cos(pitch) + y * sin(pitch), k = zoom * 6 / Math.max(1, 6 - depth);
      return [w / 2 + (x * cos(yaw) + z * sin(yaw)) * k, h / 2 - (y * cos(pitch) - near * sin(pitch)) * k, depth, k];
    };
    const floor = p => project(p[0], 0, p[2]), grid = [];
    for (let k = -1.5; k <= 1.5; k += .5) {
      const x = Math.round(cx * 2) / 2 + k, z = Math.round(cz * 2) / 2 + k;
      const a = Math.sqrt(3.1 - (x - cx) ** 2), b = Math.sqrt(3.1 - (z - cz) ** 2);
      grid.push([project(x, 0, cz - a), project(x, 0, cz + a)], [project(cx - b, 0, z), project(cx + b, 0, z)]);
    }
    stroke(ink, 1, .16, ...grid);
    stroke(ink, 1.5, .3, c.path.map(floor));
    stroke(ink, 2, .8, [...c.path.slice(0, f + 1), pose[0]].map(floor));
    if (mined) stroke(colors[3], 4, .8, c.path.slice(...mined).map(floor));
    stroke(ink, .07 * zoom, .14, ...bones.map(([a, b]) => [floor(pose[a]), floor(pose[b])]));
    const points = pose.map(p => project(...p)), far = ([a, b]) => points[a][2] + points[b][2];
    for (const [a, b, side] of bones.sort((s, t) => far(s) - far(t)))
      stroke([ink, ...colors][side], .05 * points[a][3], 1, [points[a], points[b]]);
    const [x, y, , k] = points[head];
    stroke(ink, .19 * k, 1, [[x, y], [x + .01, y]]);  // a dot
    c.canvas.style.opacity = at > end && end < last ? .4 : 1;  // ended before the others
  };
  const draw = host.draw = () => {
    ink = getComputedStyle(host).color;  // light on dark or dark on light, as the page has it
    clips.forEach((c, k) => scene(c, k ? null : mined));
    const [g, w, h, stroke] = surface(line), now = Math.min(at, last), track = h - (segments ? 29 : 11);
    const x = f => 8 + clamp(f, 0, last) / (last || 1) * (w - 16);
    const block = (fillStyle, globalAlpha, a, b, y, high) => {
      Object.assign(g, {fillStyle, globalAlpha});
      g.fillRect(x(a), y, x(b) - x(a) - 1, high);
    };
    if (mined) block(colors[3], .3, ...mined, 2, track);
    if (attention) stroke(colors[2], 2, 1, attention.map((a, f) => [x(f), track - 5 - a * (track - 9)]));
    (segments || []).forEach(([label, a, b, color]) => {
      block(color, .4, a, b, h - 16, 15);
      Object.assign(g, {fillStyle: ink, globalAlpha: 1, font: "11px system-ui,sans-serif"});
      if (g.measureText(label).width < x(b) - x(a) - 6) g.fillText(label, x(a) + 4, h - 4.5);
    });
    stroke(ink, 3, .25, [[x(0), track], [x(last), track]]);
    stroke(ink, 1.5, .9, [[x(0), track], [x(now), track]], [[x(now), 2], [x(now), h - 2]]);
    stroke(ink, 12, 1, [[x(now), track], [x(now) + .01, track]]);
    clock.value = `${(now / fps).toFixed(2)} / ${(last / fps).toFixed(2)} s`;
    Object.assign(line, {ariaValueNow: Math.round(now), ariaValueText: clock.value});
  };

  new IntersectionObserver(e => { seen = e.pop().isIntersecting; run(); }).observe(host);
  new ResizeObserver(draw).observe(host);
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
};

const redraw = () => document.querySelectorAll("kinemic-skeleton").forEach(e => e.draw());
const theme = new MutationObserver(redraw);
for (const e of [document.documentElement, document.body])
  theme.observe(e, {attributeFilter: ["data-theme", "data-jp-theme-light", "class"]});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
customElements.define("kinemic-skeleton", class extends HTMLElement {
  connectedCallback() { this.shadowRoot || build(this); }
});
})();
