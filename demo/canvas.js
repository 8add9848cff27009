// An image to point at. props: picture (URI), width, height (pixels of the image), several (prompts may be many);
// props.value: the prompts in pixels of the image, as `XSam.interact` takes them; "submit" follows each change, "upload"
// a file of at most props.bytes.
const stage = element.querySelector("canvas"), pen = stage.getContext("2d"), photo = new Image();
let tool = "point", path = null, cursor = null; // path: of the prompt being drawn; cursor: of the arrow keys

const limit = (value, most) => Math.floor(10 * Math.min(Math.max(value, 0), most - 0.1)) / 10;
const place = (x, y) => [limit(x, props.width), limit(y, props.height)];
const near = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) < 0.015 * Math.max(props.width, props.height);

function prompt() {
  const [a, b] = [path[0], path[path.length - 1]];
  const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  return { [tool]: { point: b, box, scribble: path }[tool] };
}

function outline([kind, at], radius) {
  pen.beginPath();
  if (kind === "point") pen.arc(...at, radius, 0, 2 * Math.PI);
  if (kind === "box") pen.rect(at[0], at[1], at[2] - at[0], at[3] - at[1]);
  if (kind === "scribble") [...at, at[at.length - 1]].forEach((p) => pen.lineTo(...p));
}

function draw() {
  element.querySelector(".xs-empty").hidden = Boolean(props.picture);
  stage.hidden = !props.picture;
  if (!props.picture || !photo.naturalWidth) return;
  const fine = Math.ceil(1000 / Math.max(photo.naturalWidth, photo.naturalHeight)); // sharp marks on small images
  [stage.width, stage.height] = [fine * photo.naturalWidth, fine * photo.naturalHeight];
  pen.drawImage(photo, 0, 0, stage.width, stage.height);
  pen.scale(stage.width / props.width, stage.height / props.height);
  const thin = 2 * props.width / Math.max(stage.clientWidth, 1); // two pixels of the screen
  const brush = 10 * Math.min(props.width, props.height) / 480; // as wide as the model sees it
  [pen.lineCap, pen.lineJoin, pen.fillStyle, pen.font] = ["round", "round", "#e11d48", `bold ${8 * thin}px sans-serif`];
  [...(props.value || []), ...(path ? [prompt()] : [])].forEach((each, number) => {
    const [kind, at] = Object.entries(each)[0], line = kind === "scribble" ? brush : thin;
    for (const [ink, width] of [["#ffffff", line + thin], ["#e11d48", line]]) {
      [pen.strokeStyle, pen.lineWidth] = [ink, width];
      outline([kind, at], Math.max(brush, 2 * thin));
      pen.stroke();
      const [x, y] = at.flat();
      if (props.several && ink === "#ffffff") pen.strokeText(number + 1, x + 6 * thin, y - 3 * thin);
      if (props.several) pen.fillText(number + 1, x + 6 * thin, y - 3 * thin);
    }
  });
  if (cursor && document.activeElement === stage) {
    [pen.strokeStyle, pen.lineWidth] = ["#e11d48", thin];
    pen.strokeRect(cursor[0] - 8 * thin, cursor[1], 16 * thin, 0);
    pen.strokeRect(cursor[0], cursor[1] - 8 * thin, 0, 16 * thin);
  }
}

function give(prompts) {
  path = null;
  props.value = prompts;
  trigger("submit");
  draw();
}

function down(at) {
  path = path && tool === "box" ? path : [at]; // a second click ends a box that a first one began
  draw();
}

function move(at) {
  if (!path) return;
  if (tool === "scribble") path.push(at);
  else path[tool === "box" ? 1 : 0] = at;
  if (path.length > 400) path = path.filter((_, number) => number % 2 === 0);
  draw();
}

function up(at) {
  if (!path || (tool === "box" && near(path[0], at))) return;
  move(at);
  give([...(props.several ? props.value || [] : []), prompt()]);
}

function of(event) {
  const frame = stage.getBoundingClientRect();
  return place(((event.clientX - frame.left) / frame.width) * props.width,
    ((event.clientY - frame.top) / frame.height) * props.height);
}

function take(file) {
  const large = file && file.size > props.bytes, reader = new FileReader();
  element.querySelector(".xs-note").textContent = large ? `This file has ${Math.round(file.size / 1e6)} MB, too many.` : "";
  reader.onload = () => trigger("upload", { base64: reader.result.split(",")[1] || "" });
  if (file && !large) reader.readAsDataURL(file);
}

element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
const field = element.querySelector("input");
field.addEventListener("change", () => { take(field.files[0]); field.value = ""; });
stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); cursor = null; down(of(event)); });
stage.addEventListener("pointermove", (event) => move(of(event)));
stage.addEventListener("pointerup", (event) => up(of(event)));
stage.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!props.picture || !(way || event.key === "Enter")) return;
  event.preventDefault();
  cursor = cursor || [props.width / 2, props.height / 2];
  const step = Math.max(props.width, props.height) / (event.shiftKey ? 20 : 100);
  if (way) cursor = place(cursor[0] + way[0] * step, cursor[1] + way[1] * step);
  if (way) move(cursor);
  else if (path) up(cursor);
  else down(cursor);
  if (!way && tool === "point") up(cursor);
  draw();
});
stage.addEventListener("focus", draw);
stage.addEventListener("blur", draw);
element.querySelector("[data-clear]").addEventListener("click", () => give([]));
const tools = [...element.querySelectorAll("[data-tool]")];
tools.forEach((button) => button.addEventListener("click", () => {
  [tool, path] = [button.dataset.tool, null];
  tools.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
  draw();
}));
photo.addEventListener("load", draw);
const show = () => { path = cursor = null; photo.src = props.picture || ""; draw(); };
watch("picture", show);
watch("value", draw);
show();
