/* Stands between the map and Python: what is chosen goes to the map, what is drawn or clicked there goes to Python. */

const links = new WeakMap();

export default function ({ parentElement, data, setTriggerValue }) {
  let link = links.get(parentElement);
  if (!link) links.set(parentElement, (link = open(data.channel)));
  link.update(data, setTriggerValue);
  return () => {
    link.close();
    links.delete(parentElement);
  };
}

function open(name) {
  const channel = new BroadcastChannel(name);
  let [data, tell] = [null, null];
  const region = () => channel.postMessage({ type: "region", bounds: data.region });

  channel.onmessage = ({ data: message }) => {
    if (message.type === "hello") region();
    if (message.type === "hello" && message.of === "buildings" && data.building) {
      channel.postMessage({ type: "building", id: data.building });
    }
    if (message.type === "drawn") tell("drawn", message.bounds);
    if (message.type === "building" && message.id !== data.building) tell("building", message.id);
  };

  return {
    update(next, setTriggerValue) {
      const moved = String(next.region) !== String(data?.region);
      [data, tell] = [next, setTriggerValue];
      if (moved) region();
    },
    close() {
      channel.close();
    },
  };
}
