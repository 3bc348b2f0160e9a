/* Patch pairs that were selected elsewhere, outlined on the map. Loaded after map.js, in the same frame. The message
   "patches" on the channel holds a ring of latitudes and longitudes for each. */
(function () {
  "use strict";

  const FULL = 40; // pixels of a patch on the screen from which its outline has its full width

  function patches(map, { channel: name }) {
    const channel = new BroadcastChannel(name);
    map.createPane("mmcd-patches").style.zIndex = 440;
    const renderer = L.canvas({ pane: "mmcd-patches", padding: 0.3 });
    const group = L.layerGroup().addTo(map);
    let rings = [];

    function draw() {
      group.clearLayers();
      const width = rings.length ? Math.min(1, Math.max(0.5, side(map, rings[0]) / FULL)) : 1;
      const look = { renderer, pane: "mmcd-patches", interactive: false, fill: false };
      // Yellow over black: seen on dark and on light images.
      for (const [color, weight] of [["#000000", 5], ["#ffe600", 2.5]]) {
        for (const ring of rings) L.polygon(ring, { ...look, color, weight: width * weight }).addTo(group);
      }
      map.getContainer().dataset.patches = rings.length;
    }

    channel.onmessage = ({ data }) => {
      if (data.type !== "patches") return;
      rings = data.rings;
      draw();
    };
    map.on("zoomend", draw);
    channel.postMessage({ type: "hello" });
  }

  function side(map, ring) {
    const [a, b] = [ring[0], ring[2]].map((corner) => map.latLngToContainerPoint(corner));
    return Math.max(Math.abs(a.x - b.x), Math.abs(a.y - b.y));
  }

  Object.assign(window.mmcd, { patches });
})();
