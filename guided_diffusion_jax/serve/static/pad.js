// A drawing area with as many pixels as the model sees: by pointer, by keyboard, or from a file; with a mask over it.

export class Pad {
  constructor(root, name, [height, width, channels], { masked, changed, limit }) {
    Object.assign(this, { name, height, width, changed, limit, file: null, drawn: false, at: [width >> 1, height >> 1] });
    root.innerHTML = `<div class="stack" tabindex="0" role="application"
        aria-label="drawing area of ${name.replace("_", " ")}: arrow keys move the brush, space paints">
        <canvas class="image"></canvas><canvas class="mask" hidden></canvas><div class="cursor" hidden></div></div>
      <div class="tools"></div>`;
    this.stack = root.querySelector(".stack");
    [this.image, this.mask] = root.querySelectorAll("canvas");
    this.cursor = root.querySelector(".cursor");
    for (const canvas of [this.image, this.mask]) Object.assign(canvas, { width, height });
    this.fill();
    this.mask.hidden = !masked;
    this.tools(root.querySelector(".tools"), channels, masked);
    this.listen();
  }

  tools(root, channels, masked) {
    const add = (html) => {
      root.insertAdjacentHTML("beforeend", html);
      return root.lastElementChild;
    };
    const named = this.name.replace("_", " ");
    this.layer = "image";
    if (masked) {
      const layers = add(`<label>paint <select aria-label="what the brush paints">
        <option value="image">the image</option><option value="mask">the mask</option></select></label>`).firstElementChild;
      layers.onchange = () => (this.layer = layers.value);
      this.layers = layers;
    }
    const colours = ["#ffffff", "#808080", "#000000"];
    this.colour = channels === 1
      ? add(`<label>brush <select aria-label="brush of ${named}">${["white", "grey", "black"]
          .map((word, i) => `<option value="${colours[i]}">${word}</option>`).join("")}</select></label>`).firstElementChild
      : add(`<label>brush <input type="color" value="#d71e23" aria-label="colour of ${named}"></label>`).firstElementChild;
    this.size = add(`<label>width <input type="number" min="1" max="${this.width}" value="${Math.max(1, Math.round(this.width / 12))}"
      aria-label="width of the brush of ${named}"></label>`).firstElementChild;
    add(`<button type="button">Clear</button>`).onclick = () => this.clear();
    const upload = add(`<input type="file" accept="image/*" aria-label="upload ${named}">`);
    upload.onchange = () => upload.files[0] && this.open(upload.files[0]);
    this.upload = upload;
  }

  listen() {
    let last = null;
    const place = (event) => {
      const box = this.image.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * this.width, ((event.clientY - box.top) / box.height) * this.height];
    };
    this.stack.addEventListener("pointerdown", (event) => {
      this.stack.setPointerCapture(event.pointerId);
      this.stroke((last = place(event)), last);
    });
    this.stack.addEventListener("pointermove", (event) => {
      if (last) this.stroke(last, (last = place(event)));
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.stack.addEventListener(end, () => {
        if (last) this.changed();
        last = null;
      });
    }
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.stack.addEventListener("keydown", (event) => {
      if (event.key in moves) {
        const far = event.shiftKey ? Math.max(1, this.width >> 3) : 1;
        this.at = this.at.map((v, i) => Math.min([this.width, this.height][i] - 1, Math.max(0, v + far * moves[event.key][i])));
      } else if (event.key === " ") {
        const centre = this.at.map((v) => v + 0.5);
        this.stroke(centre, centre);
        this.changed();
      } else return;
      event.preventDefault();
      this.point();
    });
    this.stack.addEventListener("focus", () => this.point());
    this.stack.addEventListener("blur", () => (this.cursor.hidden = true));
  }

  point() {
    const [x, y] = this.at, each = 100 / this.width;
    Object.assign(this.cursor.style, { left: `${x * each}%`, top: `${(y * 100) / this.height}%`, width: `${each}%`, height: `${100 / this.height}%` });
    this.cursor.hidden = false;
  }

  stroke([x0, y0], [x1, y1]) {
    const onMask = this.layer === "mask";
    const context = (onMask ? this.mask : this.image).getContext("2d");
    const wide = Math.max(1, Number(this.size.value) || 1);
    context.fillStyle = onMask ? "#e0409f" : this.colour.value;
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
    for (let i = 0; i <= steps; i++) {
      const x = x0 + ((x1 - x0) * i) / steps, y = y0 + ((y1 - y0) * i) / steps;
      const corner = (v) => Math.round(v - wide / 2);
      context.fillRect(corner(x), corner(y), wide, wide);
    }
    if (!onMask) [this.drawn, this.file] = [true, null];
    this.marked ||= onMask;
  }

  fill() {
    const context = this.image.getContext("2d");
    context.fillStyle = "#000000";
    context.fillRect(0, 0, this.width, this.height);
  }

  clear() {
    this.fill();
    this.mask.getContext("2d").clearRect(0, 0, this.width, this.height);
    [this.file, this.drawn, this.marked, this.upload.value] = [null, false, false, ""];
    this.changed();
  }

  async open(file) {
    if (file.size > this.limit) return this.changed(`the file has more than ${this.limit >> 20} MB; make it smaller`);
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    });
    return this.show(url);
  }

  // The server reads the file itself; here it is only shown.
  async show(url) {
    this.file = url.replace(/^data:[^;,]*/, "data:application/octet-stream");
    const shown = new Image();
    shown.src = url;
    try {
      await shown.decode();
      const scale = Math.max(this.width / shown.width, this.height / shown.height);
      const size = [shown.width * scale, shown.height * scale];
      this.image.getContext("2d").drawImage(shown, (this.width - size[0]) / 2, (this.height - size[1]) / 2, ...size);
    } catch {
      this.fill();
    }
    this.drawn = true;
    this.changed();
  }

  values() {
    if (!this.drawn) return {};
    const found = { [this.name]: this.file ?? this.image.toDataURL("image/png") };
    if (this.marked) {
      const flat = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
      const context = flat.getContext("2d");
      const painted = this.mask.getContext("2d").getImageData(0, 0, this.width, this.height);
      for (let i = 0; i < painted.data.length; i += 4) painted.data.fill(painted.data[i + 3] > 127 ? 255 : 0, i, i + 3).fill(255, i + 3, i + 4);
      context.putImageData(painted, 0, 0);
      found.inpaint_mask = flat.toDataURL("image/png");
    }
    return found;
  }
}
