/* Layers of mmcd's maps. Loaded into the map's frame before the map's own script, which calls these functions.
   The controls live outside the frame; both sides speak over a BroadcastChannel named after the browser session. */
(function () {
  "use strict";

  const TILE = 256;
  const NOT_ASSESSED = 0;
  const DEGREES_APART = 110; // pixels at least between two meridians, so that their degrees can be read
  const HATCH = [0xe0ffffff, 0xe0303030]; // ABGR: white and dark stripes, seen on any image and never mistaken for a score
  const OUTLINE = 0xff000000; // ABGR: black around every changed patch, the cue that needs no colour

  /* A press on a map gives it the focus. The page around the frame must not scroll to show all of it: on a low screen
     the map would move away under the mouse, and the click be lost. */
  L.Map.addInitHook(function () {
    const container = this.getContainer();
    container.focus = () => HTMLElement.prototype.focus.call(container, { preventScroll: true });
  });

  /** Return 256 colours as ABGR words: transparent below the threshold, else the palette's colour of the probability. */
  function lookUpTable(style) {
    const table = new Uint32Array(256);
    for (let value = Math.max(1, style.threshold); value < 256; value++) {
      const [red, green, blue] = style.colours[value];
      table[value] = (255 << 24) | (blue << 16) | (green << 8) | red;
    }
    return table;
  }

  /* Score tiles: the 8-bit values stay in memory, a repaint is one pass through the look-up table. */
  const ValueTiles = L.GridLayer.extend({
    initialize(url, options) {
      this.url = url;
      L.setOptions(this, options);
    },

    restyle(style) {
      this.style = style;
      this.table = lookUpTable(style);
      this.setOpacity(style.opacity);
      if (this.pending) return;
      this.pending = requestAnimationFrame(() => {
        this.pending = 0;
        for (const key in this._tiles) this.paint(this._tiles[key].el);
      });
    },

    createTile(coords, done) {
      const tile = L.DomUtil.create("canvas", "mmcd-values");
      tile.width = tile.height = TILE;
      tile.inside = this.coverage(tile, coords);
      const image = new Image();
      image.onload = () => {
        const context = tile.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0);
        tile.pixels = context.getImageData(0, 0, TILE, TILE);
        tile.values = new Uint8Array(TILE * TILE);
        for (let i = 0; i < tile.values.length; i++) tile.values[i] = tile.pixels.data[4 * i];
        this.paint(tile);
        done(null, tile);
      };
      image.onerror = () => done(null, tile); // 204: nothing of the raster lies here
      image.src = L.Util.template(this.url, coords);
      return tile;
    },

    /** Which pixels of a tile the raster covers: its outline, filled once on the tile's own canvas. */
    coverage(tile, coords) {
      const context = tile.getContext("2d", { willReadFrequently: true });
      const origin = coords.scaleBy(L.point(TILE, TILE));
      context.beginPath();
      for (const place of this.options.footprint) {
        const { x, y } = this._map.project(place, coords.z).subtract(origin);
        context.lineTo(x, y);
      }
      context.fill();
      const filled = context.getImageData(0, 0, TILE, TILE).data;
      context.clearRect(0, 0, TILE, TILE);
      return filled;
    },

    paint(tile) {
      if (!tile.pixels || !this.table) return;
      const { values, inside } = tile;
      const { table, style: { threshold, outline }, options: { hatched } } = this;
      const words = new Uint32Array(tile.pixels.data.buffer);
      for (let y = 0, i = 0; y < TILE; y++) {
        for (let x = 0; x < TILE; x++, i++) {
          const value = values[i];
          if (value === NOT_ASSESSED) {
            const stripe = (x + y) % 10 >> 1;
            words[i] = hatched && stripe < 2 && inside[4 * i + 3] ? HATCH[stripe] : 0;
          } else if (outline && value >= threshold && edge(values, x, y, i, threshold)) {
            words[i] = OUTLINE;
          } else {
            words[i] = table[value];
          }
        }
      }
      tile.getContext("2d").putImageData(tile.pixels, 0, 0);
    },
  });

  /** Whether a changed pixel touches an unchanged one of its tile. */
  function edge(values, x, y, i, threshold) {
    return (
      (x > 0 && values[i - 1] < threshold) ||
      (x < TILE - 1 && values[i + 1] < threshold) ||
      (y > 0 && values[i - TILE] < threshold) ||
      (y < TILE - 1 && values[i + TILE] < threshold)
    );
  }

  function bounds([west, south, east, north]) {
    return L.latLngBounds([south, west], [north, east]);
  }

  function element(tag, className, parent, text) {
    const made = L.DomUtil.create(tag, className, parent);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  /** Let a layer be switched in the map's one layer control. */
  function toggle(map, layer, name) {
    map.mmcdToggles ??= L.control.layers({}, {}, { collapsed: false, position: "topleft" }).addTo(map);
    map.mmcdToggles.addOverlay(layer, name);
  }

  /** Name the map for assistive technology and set the colours of its empty parts. */
  function frame(map, { label, dark }) {
    const container = map.getContainer();
    container.setAttribute("role", "region");
    container.setAttribute("aria-label", label);
    container.classList.toggle("mmcd-dark", dark);
    map.attributionControl.setPrefix('<a href="https://leafletjs.com">Leaflet</a>');
  }

  /** Score layer with its legend, restyled by whoever speaks on the channel. */
  function score(map, options) {
    map.createPane("mmcd-score").style.zIndex = 350;
    const layer = new ValueTiles(options.url, {
      pane: "mmcd-score",
      bounds: L.latLngBounds(options.footprint),
      footprint: options.footprint,
      hatched: options.unassessed, // else only the ragged edge of the raster would be hatched
      maxNativeZoom: options.maxNativeZoom,
      maxZoom: 24,
      attribution: options.attribution,
    }).addTo(map);
    toggle(map, layer, "Probability of change");
    const legend = scoreLegend(map, options);
    const channel = new BroadcastChannel(options.channel);
    channel.onmessage = ({ data }) => {
      if (data.type !== "style") return;
      layer.restyle(data);
      legend(data);
    };
    channel.postMessage({ type: "hello" });
  }

  /** Colour bar of the score with the threshold's mark; returns the function that redraws it. */
  function scoreLegend(map, { unassessed }) {
    const control = L.control({ position: "bottomright" });
    const box = element("div", "mmcd-legend");
    box.setAttribute("role", "img");
    element("div", "mmcd-legend-title", box, "Probability of change");
    const bar = element("canvas", "mmcd-bar", box);
    bar.width = 255;
    bar.height = 1;
    const scale = element("div", "mmcd-scale", box);
    const mark = element("div", "mmcd-mark", scale);
    for (const text of ["0", "0.5", "1"]) element("span", "", scale, text);
    const cut = element("div", "mmcd-cut", box);
    if (unassessed) {
      const row = element("div", "mmcd-row", box);
      element("span", "mmcd-hatch", row);
      element("span", "", row, "not assessed");
    }
    control.onAdd = () => box;
    control.addTo(map);
    return (style) => {
      const pixels = new ImageData(255, 1);
      new Uint32Array(pixels.data.buffer).set(lookUpTable(style).subarray(1));
      bar.getContext("2d").putImageData(pixels, 0, 0);
      bar.style.opacity = style.opacity;
      mark.style.left = `${((style.threshold - 1) / 254) * 100}%`;
      cut.textContent = `from ${((style.threshold - 1) / 254).toFixed(2)}${style.outline ? ", outlined in black" : ""}`;
      box.setAttribute("aria-label", `Legend: probability of change, ${cut.textContent}`);
    };
  }

  /** Images before and after with a divider between them that mouse and arrow keys move. */
  function swipe(map, { before, after, extent, attribution }) {
    const panes = { after: map.createPane("mmcd-after"), before: map.createPane("mmcd-before") };
    panes.after.style.zIndex = 210;
    panes.before.style.zIndex = 220;
    const box = element("div", "mmcd-swipe", map.getContainer());
    const line = element("div", "mmcd-divider", box);
    const left = element("div", "mmcd-side", box, `◀ ${before.label}`);
    const right = element("div", "mmcd-side", box, `${after.label} ▶`);
    for (const [side, image] of Object.entries({ after, before })) {
      const label = side === "before" ? left : right;
      L.tileLayer(image.url, {
        pane: `mmcd-${side}`,
        bounds: bounds(extent),
        maxNativeZoom: image.maxNativeZoom,
        maxZoom: 24,
        attribution,
        alt: `${side} the event`,
      })
        .on("loading", () => label.classList.add("mmcd-busy"))
        .on("load", () => label.classList.remove("mmcd-busy"))
        .addTo(map);
    }
    const input = element("input", "mmcd-handle", box);
    Object.assign(input, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
    input.setAttribute("aria-label", "Share of the map that shows the image before the event, in percent");
    L.DomEvent.disableClickPropagation(input);
    input.addEventListener("pointerdown", () => map.dragging.disable());
    input.addEventListener("pointerup", () => map.dragging.enable());

    function clip() {
      const size = map.getSize();
      const share = input.value / 100;
      // The thumb's centre runs between the half widths of the thumb, the line must follow it.
      const x = 21 + (size.x - 42) * share;
      const origin = map.containerPointToLayerPoint([0, 0]);
      const corner = map.containerPointToLayerPoint([x, size.y]);
      panes.before.style.clipPath =
        `polygon(${origin.x}px ${origin.y}px, ${corner.x}px ${origin.y}px, ` +
        `${corner.x}px ${corner.y}px, ${origin.x}px ${corner.y}px)`;
      line.style.left = `${x}px`;
      left.style.right = `${size.x - x + 8}px`;
      left.style.maxWidth = `${Math.max(x - 68, 0)}px`; // the corner belongs to the zoom buttons
      right.style.maxWidth = `${Math.max(size.x - x - 20, 0)}px`;
      right.style.left = `${x + 8}px`;
    }
    input.addEventListener("input", clip);
    map.on("move zoom resize zoomend moveend", clip);
    clip();
  }

  /** One picture layer below the score, switched in the layer control. */
  function labels(map, { url, extent, maxNativeZoom, name }) {
    const layer = L.tileLayer(url, { bounds: bounds(extent), maxNativeZoom, maxZoom: 24, pane: "overlayPane" });
    toggle(map, layer, name);
  }

  /** Meridians and parallels with their degrees, redrawn for each view. */
  function graticule(map) {
    const group = L.layerGroup().addTo(map);
    // Lines lie below the images, degrees above everything.
    for (const [name, zIndex] of Object.entries({ "mmcd-graticule": 205, "mmcd-degrees": 640 })) {
      Object.assign(map.createPane(name).style, { zIndex, pointerEvents: "none" });
    }

    function draw() {
      group.clearLayers();
      const view = map.getBounds();
      const span = Math.min(view.getEast() - view.getWest(), 360);
      const step = niceStep((span * DEGREES_APART) / map.getSize().x);
      const digits = Math.max(0, Math.ceil(-Math.log10(step)));
      const [south, north] = [Math.max(view.getSouth(), -85), Math.min(view.getNorth(), 85)];
      const [west, east] = [Math.max(view.getWest(), -180), Math.min(view.getEast(), 180)];
      for (let lon = Math.ceil(west / step) * step; lon <= east + 1e-9; lon += step) {
        line([[south, lon], [north, lon]]);
        degrees([north, lon], lon, digits, "W", "E");
      }
      for (let lat = Math.ceil(south / step) * step; lat <= north + 1e-9; lat += step) {
        line([[lat, west], [lat, east]]);
        degrees([lat, west], lat, digits, "S", "N");
      }
    }
    function line(points) {
      L.polyline(points, { pane: "mmcd-graticule", className: "mmcd-grid", weight: 1, interactive: false }).addTo(group);
    }
    function degrees(place, value, digits, negative, positive) {
      const side = Math.abs(value) < 1e-9 ? "" : ` ${value < 0 ? negative : positive}`;
      const html = `${Math.abs(value).toFixed(digits)}°${side}`;
      const icon = L.divIcon({ className: `mmcd-degrees mmcd-${positive}`, html, iconSize: null });
      const { x, y } = map.latLngToContainerPoint(place);
      if (x < 50 && y < 30) return; // the corner belongs to the zoom buttons
      L.marker(place, { pane: "mmcd-degrees", icon, interactive: false, keyboard: false }).addTo(group);
    }
    map.on("moveend", draw);
    draw();
  }

  /** Return the smallest round number of degrees that is not below ``least``. */
  function niceStep(least) {
    if (least > 10) return [20, 30, 60].find((step) => step >= least) ?? 90;
    const power = 10 ** Math.floor(Math.log10(least));
    return power * ([1, 2, 5].find((factor) => power * factor >= least) ?? 10);
  }

  /** Line of text over the map, for what must not be missed. */
  function note(map, { text }) {
    const control = L.control({ position: "bottomleft" });
    control.onAdd = () => element("div", "mmcd-note", undefined, text);
    control.addTo(map);
  }

  /** Button that brings the whole scene back into view. */
  function home(map, { extent }) {
    barButton(map, "⤢", "Zoom to the scene", () => map.fitBounds(bounds(extent)));
  }

  /** Button below the zoom buttons, reached by keyboard as they are. */
  function barButton(map, sign, title, press) {
    const control = L.control({ position: "topleft" });
    const bar = element("div", "leaflet-bar");
    const button = element("a", "mmcd-button", bar, sign);
    Object.assign(button, { href: "#", title, role: "button" });
    button.setAttribute("aria-label", title);
    L.DomEvent.disableClickPropagation(bar);
    L.DomEvent.on(button, "click", (event) => {
      L.DomEvent.stop(event);
      press();
    });
    control.onAdd = () => bar;
    control.addTo(map);
    return button;
  }

  window.mmcd = { frame, score, swipe, labels, graticule, note, home, element, bounds, toggle, barButton };
})();
