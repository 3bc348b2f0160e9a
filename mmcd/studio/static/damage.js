/* Layers of the Damage map beside the score: the region to analyse and the buildings. Loaded after map.js, in the same
   frame. Messages on the channel: "style" (threshold and colours), "region" and "building" (what is chosen) come in,
   "drawn" and "building" go out. */
(function () {
  "use strict";

  const { element, bounds, toggle, barButton } = window.mmcd;
  const VISIBLE = 40; // pixels that a chosen building measures at least once the map has gone to it
  const ASIDE = 0.2; // share of the map's width from the divider in its middle at which a chosen building is put
  const FULL_ZOOM = 19; // from here on lines have their full width; on smaller maps they would hide the images
  const LEGEND_ORDER = [4, 3, 2, 1, 0];

  /** Button and keys to draw the rectangle to analyse, and the rectangle that is chosen. */
  function region(map, { channel: name }) {
    const channel = new BroadcastChannel(name);
    map.createPane("mmcd-region").style.zIndex = 430;
    const look = { pane: "mmcd-region", fill: false, interactive: false, color: "#ffffff", weight: 4 };
    const shapes = L.layerGroup().addTo(map);
    L.drawLocal.draw.handlers.rectangle.tooltip.start = "Press and drag to draw the region to analyse.";
    L.drawLocal.draw.handlers.simpleshape.tooltip.end = "Let go to finish.";
    const tool = new L.Draw.Rectangle(map, { showArea: false, shapeOptions: { color: "#0072b2", weight: 3 } });
    const button = barButton(map, "▭", "Draw the region to analyse", () => (tool.enabled() ? tool.disable() : tool.enable()));

    function show(box) {
      shapes.clearLayers();
      if (!box) return;
      // White under black dashes: seen on any image.
      L.rectangle(bounds(box), look).addTo(shapes);
      L.rectangle(bounds(box), { ...look, color: "#000000", weight: 2, dashArray: "7 6" }).addTo(shapes);
    }

    map.on("draw:drawstart draw:drawstop", ({ type }) => {
      map.mmcdDrawing = type === "draw:drawstart";
      button.setAttribute("aria-pressed", map.mmcdDrawing);
      button.classList.toggle("mmcd-pressed", map.mmcdDrawing);
    });
    map.on("draw:created", ({ layer }) => {
      const area = layer.getBounds();
      const box = [area.getWest(), area.getSouth(), area.getEast(), area.getNorth()];
      show(box);
      channel.postMessage({ type: "drawn", bounds: box.map((degrees) => +degrees.toFixed(6)) });
    });
    channel.onmessage = ({ data }) => data.type === "region" && show(data.bounds);
    channel.postMessage({ type: "hello" });
  }

  /** Return the grade of a building at a stored threshold: 0 not assessed, else 1 plus the cuts that it still reaches.

      A building's share of changed pixels only falls while the threshold rises, so one stored value a grade (the
      highest threshold at which the building still has it) gives its grade at every threshold. */
  function gradeAt(cuts, threshold) {
    return cuts ? 1 + cuts.filter((cut) => cut >= threshold).length : 0;
  }

  /** Building outlines, graded anew in the browser whenever the threshold moves. */
  async function buildings(map, { url, channel: name, grades }) {
    map.createPane("mmcd-buildings").style.zIndex = 400;
    map.createPane("mmcd-chosen").style.zIndex = 420;
    const renderer = L.canvas({ pane: "mmcd-buildings", tolerance: 2, padding: 0.3 });
    const group = L.featureGroup().addTo(map);
    const mark = L.layerGroup().addTo(map);
    let [threshold, width] = [null, null];
    const byId = new Map();
    const channel = new BroadcastChannel(name);
    channel.onmessage = ({ data }) => {
      if (data.type === "style") regrade((threshold = data.threshold));
      if (data.type === "building") choose(data.id, true);
    };
    const answer = await fetch(url);
    if (!answer.ok) return;
    const { features } = await answer.json();
    if (!features.length) return;
    toggle(map, group, "Buildings");
    legend(map, grades);
    for (const feature of features) add(feature);
    map.on("zoomend", fitLines);
    fitLines();
    channel.postMessage({ type: "hello", of: "buildings" });

    /* Thinner lines on small maps, where the many intact buildings step back. */
    function fitLines() {
      const fitting = Math.min(1, Math.max(0.5, 1 - (FULL_ZOOM - map.getZoom()) / 4));
      if (width === fitting) return;
      width = fitting;
      for (const made of byId.values()) made.grade = -1;
      if (threshold !== null) regrade(threshold);
    }

    function styleOf({ name, colour, weight, dash }) {
      const small = width <= 0.5;
      const faint = small && (name === "intact" || name === "not assessed");
      return {
        color: colour, weight: width * weight, dashArray: small ? null : dash,
        fillColor: colour, fillOpacity: 0.01, opacity: faint ? 0.5 : 1,
      };
    }

    function add(feature) {
      const outline = L.geoJSON(feature, { renderer, pane: "mmcd-buildings" }).getLayers()[0];
      const { id, cuts } = feature.properties;
      const made = { id, cuts, outline, cross: null, grade: -1 };
      outline.on("click", (event) => {
        L.DomEvent.stop(event);
        if (map.mmcdDrawing) return;
        choose(id, false);
        channel.postMessage({ type: "building", id });
      });
      outline.bindTooltip(() => element("span", "", undefined, `${id}: ${grades[made.grade]?.name ?? ""}`), { sticky: true });
      group.addLayer(outline);
      byId.set(id, made);
    }

    function regrade(value) {
      const styles = grades.map(styleOf);
      for (const made of byId.values()) {
        const grade = gradeAt(made.cuts, value);
        if (grade === made.grade) continue;
        made.grade = grade;
        made.outline.setStyle(styles[grade]);
        crossOut(made, grades[grade].crossed);
      }
    }

    /* A crossed-out outline tells the worst grade without its colour. */
    function crossOut(made, wanted) {
      if (!wanted) {
        if (made.cross) group.removeLayer(made.cross);
        return;
      }
      made.cross ??= L.polyline(diagonals(made.outline), {
        renderer, pane: "mmcd-buildings", interactive: false, color: grades.at(-1).colour,
      });
      made.cross.setStyle({ weight: 2 * width });
      group.addLayer(made.cross);
    }

    function choose(id, go) {
      mark.clearLayers();
      const made = byId.get(id);
      if (!made) return;
      const shape = made.outline.getLatLngs();
      for (const [color, weight] of [["#000000", 8], ["#ffffff", 4]]) {
        L.polygon(shape, { pane: "mmcd-chosen", interactive: false, fill: false, color, weight, className: "mmcd-chosen" }).addTo(mark);
      }
      if (go) goTo(map, made.outline.getBounds());
    }
  }

  /** Show a building beside the divider, not under it. */
  function goTo(map, area) {
    const zoom = zoomFor(map, area);
    const place = map.project(area.getCenter(), zoom).subtract([ASIDE * map.getSize().x, 0]);
    map.setView(map.unproject(place, zoom), zoom);
  }

  /** Return the present zoom, or the smallest at which a building can be seen. */
  function zoomFor(map, area) {
    const size = map.latLngToContainerPoint(area.getSouthEast()).subtract(map.latLngToContainerPoint(area.getNorthWest()));
    const missing = Math.ceil(Math.log2(VISIBLE / Math.max(size.x, size.y, 1e-3)));
    return Math.min(map.getZoom() + Math.max(missing, 0), map.getMaxZoom());
  }

  function diagonals(outline) {
    let ring = outline.getLatLngs();
    while (Array.isArray(ring[0])) ring = ring[0];
    const corner = (share) => ring[Math.floor(share * ring.length)];
    return [[corner(0), corner(0.5)], [corner(0.25), corner(0.75)]];
  }

  function legend(map, grades) {
    const control = L.control({ position: "bottomright" });
    const box = element("div", "mmcd-legend mmcd-grades");
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", `Legend of buildings: ${grades.map(({ name }) => name).join(", ")}`);
    element("div", "mmcd-legend-title", box, "Buildings");
    for (const { name, colour, weight, dash, crossed } of LEGEND_ORDER.map((i) => grades[i])) {
      const row = element("div", "mmcd-row", box);
      row.innerHTML =
        '<svg width="22" height="14" aria-hidden="true"><path d="M3 2 H19 V12 H3 Z" fill="none"/>' +
        `${crossed ? '<path d="M3 2 L19 12 M3 12 L19 2"/>' : ""}</svg>`;
      for (const path of row.querySelectorAll("path")) {
        path.setAttribute("stroke", colour);
        path.setAttribute("stroke-width", weight);
        path.setAttribute("stroke-dasharray", dash ?? "");
      }
      element("span", "", row, name);
    }
    control.onAdd = () => box;
    control.addTo(map);
  }

  Object.assign(window.mmcd, { region, buildings });
})();
