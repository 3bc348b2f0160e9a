/* Threshold under the score's histogram. While the slider moves, numbers, histogram and map follow without the server:
   everything is a look-up in tables of 256 entries that came once, and the map repaints from the values it holds. On
   release the value goes to Python. */

const QUALITY = ["precision", "recall", "f1", "iou"];
const panels = new WeakMap();

export default function ({ parentElement, data, setStateValue }) {
  let panel = panels.get(parentElement);
  if (!panel) panels.set(parentElement, (panel = mount(parentElement)));
  panel.update(data, setStateValue);
  return () => {
    panel.close();
    panels.delete(parentElement);
  };
}

function mount(root) {
  const part = (id) => root.querySelector(`#${id}`);
  const [slider, palette, opacity, outline] = ["threshold", "palette", "opacity", "outline"].map(part);
  let data = null;
  let release = null;
  let channel = null;
  let presets = [];

  const probabilityOf = (value) => ((value - 1) / 254).toFixed(2);

  /** Redraw everything for the slider's value; ``released`` says that it is no longer being dragged. */
  function refresh(released) {
    const value = +slider.value;
    const probability = probabilityOf(value);
    const [changed, assessed] = [data.changed[value], data.changed[1]];
    part("shown").textContent = probability;
    part("changed").textContent = amount(changed);
    part("share").textContent = assessed ? percent(changed / assessed) : "–";
    part("assessed").textContent = amount(assessed);
    part("missing").textContent = amount(data.counts[0]);
    slider.setAttribute("aria-valuetext", `probability ${probability}, changed ${amount(changed)}`);
    for (const name of data.quality ? QUALITY : []) part(name).textContent = data.quality[name][value].toFixed(3);
    for (const [button, preset] of presets) button.setAttribute("aria-pressed", preset.value === value);
    drawHistogram(value);
    send(released);
  }

  function amount(pixels) {
    const value = pixels * data.unit.perPixel;
    const digits = data.unit.digits;
    return `${value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${data.unit.name}`;
  }

  function percent(share) {
    return share.toLocaleString("en", { style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });
  }

  function drawHistogram(value) {
    const canvas = part("histogram");
    const width = (canvas.width = canvas.clientWidth || 300);
    const height = canvas.height;
    const context = canvas.getContext("2d");
    // The logarithm keeps the few changed pixels visible beside the many unchanged ones.
    const top = Math.log1p(Math.max(...data.counts.slice(1), 1));
    const colours = data.palettes[palette.value];
    const bar = width / 255;
    const text = getComputedStyle(part("shown")).color;
    for (let i = 1; i < 256; i++) {
      const tall = (Math.log1p(data.counts[i]) / top) * (height - 2);
      context.fillStyle = i >= value ? `rgb(${colours[i]})` : "#8c9aa6";
      context.globalAlpha = i >= value ? 1 : 0.5;
      const left = Math.floor((i - 1) * bar);
      context.fillRect(left, height - tall, Math.max(Math.floor(i * bar) - left, 1), tall);
    }
    context.globalAlpha = 1;
    context.fillStyle = text;
    context.fillRect(((value - 1) / 254) * width - 1, 0, 2, height);
    canvas.setAttribute("aria-label", `Histogram of the probability of change, counts on a logarithmic scale; threshold at ${probabilityOf(value)}`);
  }

  function send(released) {
    channel?.postMessage({
      type: "style",
      threshold: +slider.value,
      opacity: +opacity.value,
      outline: outline.checked,
      colours: data.palettes[palette.value],
      released,
    });
  }

  /** Follow the map: it says hello when it is new and knows no style. */
  function listen(name) {
    if (channel?.name === name) return;
    channel?.close();
    channel = new BroadcastChannel(name);
    channel.onmessage = ({ data: message }) => message.type === "hello" && send(true);
  }

  function letGo() {
    refresh(true);
    release("threshold", +slider.value);
  }

  function keepLook() {
    refresh(true);
    release("look", { palette: palette.value, opacity: +opacity.value, outline: outline.checked });
  }

  /** What is there for the whole life of the panel: choices, and the values that the address asked for. */
  function prepare() {
    for (const name of Object.keys(data.palettes)) palette.add(new Option(name, name));
    palette.value = data.look.palette;
    opacity.value = data.look.opacity;
    outline.checked = data.look.outline;
    part("quality").hidden = !data.quality;
    // Only once: the answer to an earlier release must not move a thumb that has been moved on since.
    slider.value = data.value;
    presets = data.presets.map((preset) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: `${preset.name} ${probabilityOf(preset.value)}`, title: preset.why });
      button.addEventListener("click", () => {
        slider.value = preset.value;
        letGo();
      });
      part("presets").append(button);
      return [button, preset];
    });
  }

  slider.addEventListener("input", () => refresh(false));
  slider.addEventListener("change", letGo);
  opacity.addEventListener("input", () => send(false));
  for (const control of [opacity, outline, palette]) control.addEventListener("change", keepLook);
  const observer = new ResizeObserver(() => data && drawHistogram(+slider.value));
  observer.observe(part("histogram"));

  return {
    update(next, setStateValue) {
      const first = !data;
      data = next;
      release = setStateValue;
      listen(data.channel);
      if (first) prepare();
      refresh(true);
    },
    close() {
      observer.disconnect();
      channel?.close();
      channel = null; // an event of the panel may still be on its way
    },
  };
}
