/* Layers of the world map of scenes. Loaded after map.js, in the same frame. */
(function () {
  "use strict";

  const GAP = 34; // pixels between two markers' centres; nearer ones would cover each other
  const DEEPEST = 18; // zoom up to which a group is opened by zooming in; what still overlaps there is laid out in a ring
  const MARGIN = [40, 40]; // pixels between a marker reached by keyboard and the edge of the map

  /* Marker shapes, drawn in a square of 28 px: the letter and the shape tell the event type without its colour. */
  const SHAPES = {
    triangle: "M14 2 L27 25 L1 25 Z",
    drop: "M14 1 C20 9 25 13 25 18 A11 9.5 0 0 1 3 18 C3 13 8 9 14 1 Z",
    square: "M3 3 H25 V25 H3 Z",
    diamond: "M14 0 L28 14 L14 28 L0 14 Z",
    hexagon: "M7 2 H21 L28 14 L21 26 H7 L0 14 Z",
    circle: "M14 1 A13 13 0 0 1 14 27 A13 13 0 0 1 14 1 Z",
    pentagon: "M14 1 L27 11 L22 26 H6 L1 11 Z",
  };

  /** Coast lines from the TopoJSON file among the assets; without the file the map stays without them. */
  async function land(map, { url }) {
    const answer = await fetch(url);
    if (!answer.ok) return;
    const topology = await answer.json();
    const { scale, translate } = topology.transform;
    const arcs = topology.arcs.map((arc) => {
      let [x, y] = [0, 0];
      return arc.map(([dx, dy]) => [(x += dx) * scale[0] + translate[0], (y += dy) * scale[1] + translate[1]]);
    });
    const ring = (indexes) => unrolled(indexes.flatMap((i) => (i < 0 ? [...arcs[~i]].reverse() : arcs[i])));
    const pane = map.createPane("mmcd-land");
    pane.style.zIndex = 203;
    for (const shape of topology.objects.land.geometries) {
      const coordinates = shape.arcs.map((polygon) => polygon.map(ring));
      L.geoJSON({ type: "MultiPolygon", coordinates }, {
        pane: "mmcd-land",
        interactive: false,
        style: { className: "mmcd-land", weight: 1 },
        attribution: "Coast lines: Natural Earth",
      }).addTo(map);
    }
  }

  /** Let a ring that crosses the date line run on beyond 180°, and one around the pole run along the map's lower edge. */
  function unrolled(ring) {
    let turn = 0;
    const open = ring.map(([lon, lat], i) => {
      const step = i ? lon - ring[i - 1][0] : 0;
      turn -= Math.abs(step) > 180 ? Math.sign(step) * 360 : 0;
      return [lon + turn, lat];
    });
    const mean = open.reduce((sum, [lon]) => sum + lon, 0) / open.length;
    const home = turn ? 0 : 360 * Math.round(mean / 360);
    const placed = open.map(([lon, lat]) => [lon - home, lat]);
    return turn ? [...placed, [placed.at(-1)[0], -85], [placed[0][0], -85]] : placed;
  }

  /** Scenes as markers (grouped while they overlap), outlines and overview images once they are large enough. */
  function scenes(map, { scenes: items, channel: name }) {
    const markers = L.featureGroup().addTo(map); // the page is told of clicks on this group's layers
    const bubbles = L.layerGroup().addTo(map); // and not of these
    const shown = new Map();
    const pictures = new Set();
    let selected = null;
    let opened = null; // group whose scenes are laid out in a ring

    /* A layer that stays is left alone: were it made anew between press and release, the browser would see no click. */
    function draw() {
      const wanted = new Map(groupsOf(map, items).flatMap((group) => (group.key === opened ? ring(group) : [single(group)])));
      for (const [key, layer] of shown) if (!wanted.has(key)) shown.delete(key) && layer.remove();
      for (const [key, make] of wanted) if (!shown.has(key)) shown.set(key, make());
      for (const layer of shown.values()) highlight(layer);
      for (const item of items) picture(item);
    }

    function single({ key, items: members, centre }) {
      if (members.length > 1) return [key, () => bubble(key, members)];
      return [key, () => marker(members[0], centre)];
    }

    /** Scenes of one place, which no zoom would separate, side by side around it and inside the map. */
    function ring({ key, items: members, point }) {
      const radius = Math.max(GAP, GAP / (2 * Math.sin(Math.PI / members.length)));
      const [edge, size] = [radius + GAP / 2, map.getSize()];
      const { x, y } = map.layerPointToContainerPoint(point);
      const middle = L.point(Math.max(edge, Math.min(x, size.x - edge)), Math.max(edge, Math.min(y, size.y - edge)));
      return members.flatMap((item, i) => {
        const angle = (2 * Math.PI * i) / members.length - Math.PI / 2;
        const place = map.containerPointToLatLng(middle.add([radius * Math.cos(angle), radius * Math.sin(angle)]));
        return [
          [`${key}/${item.id}/leg`, () => leg([item, place])],
          [`${key}/${item.id}`, () => marker(item, place)],
        ];
      });
    }

    function leg([item, place]) {
      return L.polyline([item, place], { className: "mmcd-leg", weight: 2, interactive: false }).addTo(bubbles);
    }

    function marker(item, place) {
      const html =
        `<svg viewBox="-2 -2 32 32" aria-hidden="true"><path d="${SHAPES[item.shape]}" fill="${item.colour}"/>` +
        `<text x="14" y="19.5">${item.letter}</text></svg>`;
      const made = button(place, { className: "mmcd-marker", html, iconSize: [30, 30] }, item.text);
      made.ids = [item.id];
      made.feature = { type: "Feature", properties: { id: item.id } };
      // The page is told of a change only: without the time a second click on the same marker would be none.
      made.on("click", () => (made.feature.properties.clicked = Date.now()));
      made.on("add", () => made.getElement().setAttribute("data-scene", item.id));
      return made.addTo(markers);
    }

    function bubble(key, members) {
      const area = L.latLngBounds(members.map((item) => [item.lat, item.lon]));
      const text = `${members.length} scenes here: ${members.map((item) => item.text).join("; ")}`;
      const icon = { className: "mmcd-bubble", html: String(members.length), iconSize: [34, 34] };
      const made = button(area.getCenter(), icon, text);
      made.ids = members.map((item) => item.id);
      made.on("click", () => {
        const [low, high] = [area.getSouthWest(), area.getNorthEast()].map((corner) => map.project(corner, DEEPEST));
        if (low.distanceTo(high) > 2 * GAP) map.fitBounds(area.pad(0.5), { maxZoom: DEEPEST });
        else open(key);
      });
      return made.addTo(bubbles);
    }

    /** Marker that mouse, Enter and space press. It never pans under the mouse: the release would miss it. */
    function button(place, icon, text) {
      const made = L.marker(place, { icon: L.divIcon(icon), title: text, riseOnHover: true, autoPanOnFocus: false });
      made.on("add", () => {
        const box = made.getElement();
        box.setAttribute("aria-label", text);
        L.DomEvent.on(box, "focus", () => box.matches(":focus-visible") && map.panInside(place, { padding: MARGIN }));
        L.DomEvent.on(box, "keydown", (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          L.DomEvent.stop(event);
          made.fire("click", { latlng: place }, true);
        });
      });
      return made;
    }

    function highlight(layer) {
      if (!layer.ids) return;
      const chosen = layer.ids.includes(selected);
      layer.getElement().classList.toggle("mmcd-selected", chosen);
      layer.getElement().setAttribute("aria-pressed", chosen);
    }

    function open(key) {
      opened = key;
      draw();
    }

    /* An image is fetched when its scene is in view and wider than a marker. */
    function picture(item) {
      const [west, south, east, north] = item.bounds;
      const area = L.latLngBounds([south, west], [north, east]);
      const width = map.latLngToLayerPoint(area.getNorthEast()).x - map.latLngToLayerPoint(area.getSouthWest()).x;
      if (pictures.has(item.id) || width < GAP || !map.getBounds().intersects(area)) return;
      pictures.add(item.id);
      L.imageOverlay(item.overview, area, { alt: `${item.text}, before` }).addTo(map);
      L.rectangle(area, { fill: false, color: item.colour, weight: 2, interactive: false }).addTo(map);
    }

    const channel = new BroadcastChannel(name);
    channel.onmessage = ({ data }) => {
      if (data.type !== "select" || data.id === selected) return;
      selected = data.id;
      draw();
      const item = items.find((candidate) => candidate.id === selected);
      if (item && !map.getBounds().contains(item)) map.panTo(item);
    };
    map.on("zoomstart", () => (opened = null));
    map.on("click", () => opened && open(null));
    map.on("zoomend moveend", draw);
    draw();
    channel.postMessage({ type: "hello" });
  }

  /** Group items whose markers would overlap, greedily from the first. */
  function groupsOf(map, items) {
    const groups = [];
    for (const item of items) {
      const point = map.latLngToLayerPoint(item);
      const near = groups.find((group) => group.point.distanceTo(point) < GAP);
      if (near) near.items.push(item);
      else groups.push({ point, items: [item], centre: item });
    }
    for (const group of groups) group.key = group.items.map((item) => item.id).join("+");
    return groups;
  }

  Object.assign(window.mmcd, { land, scenes });
})();
