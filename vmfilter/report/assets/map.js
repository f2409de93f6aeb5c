// Draws the map of physical memory: runs of page frames, in rows. All positions are page frames without long holes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const canvas = document.getElementById("map");
  const tip = document.getElementById("tip");
  const status = document.getElementById("status");
  const pen = canvas.getContext("2d");
  const band = 14, strip = 3, gap = 5, row = band + 3 * strip + gap;

  // Runs as columns. data.runs has for each: the hole before it, its length, and indices into uses and zones.
  const count = data.runs.length / 4;
  const start = new Float64Array(count), end = new Float64Array(count), at = new Float64Array(count);
  let present = 0;
  for (let i = 0; i < count; i++) present += data.runs[4 * i + 1];
  const longest = Math.max(Math.floor(present / 256), 1); // hole that is shown
  const cuts = []; // positions where a hole was left out
  let frame = 0, position = 0;
  for (let i = 0; i < count; i++) {
    const hole = data.runs[4 * i];
    frame += hole;
    position += Math.min(hole, longest);
    if (hole > longest) cuts.push(position);
    start[i] = frame;
    at[i] = position;
    frame += data.runs[4 * i + 1];
    position += data.runs[4 * i + 1];
    end[i] = frame;
  }
  const size = Math.max(position, 1);
  const use = (i) => data.uses[data.runs[4 * i + 2]];
  const zone = (i) => data.zones[data.runs[4 * i + 3]];

  // First index whose value is greater than the one wanted.
  function after(values, wanted) {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] <= wanted) low = middle + 1; else high = middle;
    }
    return low;
  }
  const runAt = (where) => {
    const i = after(at, where) - 1;
    return i >= 0 && where < at[i] + end[i] - start[i] ? i : -1;
  };
  // Position of a page frame; of one in a hole, that of the run after it.
  const positionOf = (pfn) => {
    const i = after(start, pfn) - 1;
    if (i >= 0 && pfn < end[i]) return at[i] + pfn - start[i];
    return i + 1 < count ? at[i + 1] : size;
  };
  const frameAt = (where) => {
    const i = Math.min(Math.max(after(at, where) - 1, 0), count - 1);
    return start[i] + where - at[i];
  };
  const spans = (ranges) => ranges.map((one) => [positionOf(one[0]), positionOf(one[1]), one]);
  const loads = spans(data.loads), spaces = spans(data.pmem);
  const hex = (pfn) => "0x" + (BigInt(Math.floor(pfn)) * BigInt(data.page_size)).toString(16);
  const last = (pfn) => "0x" + (BigInt(Math.floor(pfn)) * BigInt(data.page_size) - 1n).toString(16);

  let low = 0, high = size, selected = -1, width = 0, rows = 1, gutter = 0;

  function draw() {
    const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue("--" + name).trim();
    const colors = data.uses.map((one) => color(one.color));
    pen.font = (box.width < 480 ? 9 : 12) + "px ui-monospace, monospace";
    gutter = pen.measureText(hex(data.max_mapnr)).width + 8;
    width = Math.max(box.width - gutter, 50);
    rows = Math.max(Math.floor(box.height / row), 1);
    const each = (high - low) / rows;
    pen.fillStyle = color("paper");
    pen.fillRect(0, 0, box.width, box.height);
    pen.textBaseline = "middle";
    for (let r = 0; r < rows; r++) {
      const from = low + r * each;
      if (from >= size) break;
      pen.fillStyle = color("hole");
      pen.fillRect(gutter, r * row, width * Math.min((size - from) / each, 1), band);
      pen.fillStyle = color("faint");
      pen.fillText(hex(frameAt(from)), 2, r * row + band / 2);
    }
    // Fills a range of positions, from row to row.
    const fill = (from, to, top, height, paint) => {
      from = Math.max(from, low);
      to = Math.min(to, high);
      pen.fillStyle = paint;
      for (let r = Math.floor((from - low) / each); from < to && r < rows; r++) {
        const stop = Math.min(to, low + (r + 1) * each);
        const x = ((from - low) / each - r) * width;
        pen.fillRect(gutter + x, r * row + top, Math.max(((stop - from) / each) * width, 0.3), height);
        from = stop;
      }
    };
    const first = Math.max(after(at, low) - 1, 0);
    let zoneFrom = -1, zoneIndex = -1, zoneTo = -1;
    for (let i = first; i < count && at[i] < high; i++) {
      fill(at[i], at[i] + end[i] - start[i], 0, band, colors[data.runs[4 * i + 2]]);
      const index = data.runs[4 * i + 3];
      if (index !== zoneIndex) {
        if (zoneIndex >= 0) fill(zoneFrom, zoneTo, band + 1, strip, color("zone-" + (zoneIndex % 4)));
        zoneFrom = at[i];
        zoneIndex = index;
      }
      zoneTo = at[i] + end[i] - start[i];
    }
    if (zoneIndex >= 0) fill(zoneFrom, zoneTo, band + 1, strip, color("zone-" + (zoneIndex % 4)));
    loads.forEach((one, i) => fill(one[0], one[1], band + 1 + strip, strip, color(i % 2 ? "ink" : "zero")));
    spaces.forEach((one) => fill(one[0], one[1], band + 1 + 2 * strip, strip, color("pmem-metadata")));
    for (const where of cuts) fill(where - each / width, where + each / width, 0, band, color("ink"));
    if (selected >= 0) {
      const to = at[selected] + end[selected] - start[selected];
      fill(at[selected], to, 0, 2, color("ink"));
      fill(at[selected], to, band - 2, 2, color("ink"));
    }
    canvas.dataset.drawn = String(Math.round(high - low));
  }

  function describe(i) {
    const one = use(i), pages = end[i] - start[i];
    const lines = [
      hex(start[i]) + "-" + last(end[i]) + ", " + pages + (pages === 1 ? " page" : " pages"),
      (data.unit > 1 ? "mostly " : "") + one.class + (one.kind ? ", " + one.kind : ""),
      zone(i),
    ];
    const load = data.loads.findIndex((range) => range[0] <= start[i] && start[i] < range[1]);
    if (load >= 0) lines.push("PT_LOAD " + load);
    const space = data.pmem.find((range) => range[0] <= start[i] && start[i] < range[1]);
    if (space) lines.push(space[2] + " " + hex(space[0]) + "-" + last(space[1]));
    return lines.join("\n");
  }

  function view(from, to) {
    const span = Math.min(Math.max(to - from, Math.min(64, size)), size);
    low = Math.min(Math.max(from, 0), size - span);
    high = low + span;
    draw();
  }
  const zoom = (factor, where) => {
    const to = where + (high - where) * factor;
    view(to - (high - low) * factor, to);
  };
  const middle = () => (low + high) / 2;
  const move = (share) => view(low + (high - low) * share, high + (high - low) * share);
  function select(i) {
    if (i < 0 || i >= count) return;
    selected = i;
    status.textContent = describe(i);
    if (at[i] < low || at[i] >= high) view(at[i] - (high - low) / 2, at[i] + (high - low) / 2);
    else draw();
  }
  function positionUnder(event) {
    const box = canvas.getBoundingClientRect();
    const r = Math.min(Math.max(Math.floor((event.clientY - box.top) / row), 0), rows - 1);
    const x = Math.min(Math.max(event.clientX - box.left - gutter, 0), width);
    return low + ((high - low) / rows) * (r + x / width);
  }

  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { where: positionUnder(event), moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (held && !held.moved) select(runAt(positionUnder(event)));
    held = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held) {
      const by = held.where - positionUnder(event);
      if (held.moved || Math.abs(by) > (high - low) / rows / 50) {
        held.moved = true;
        view(low + by, high + by);
      }
    }
    const i = runAt(positionUnder(event));
    tip.hidden = i < 0;
    if (i >= 0) {
      tip.textContent = describe(i);
      const left = Math.min(event.pageX + 12, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = Math.max(left, 0) + "px";
      tip.style.top = event.pageY + 16 + "px";
    }
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.8 : 1.25, positionUnder(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(0.5, positionUnder(event)));
  const keys = {
    "+": () => zoom(0.5, middle()), "=": () => zoom(0.5, middle()), "-": () => zoom(2, middle()),
    ArrowLeft: () => move(-0.1), ArrowRight: () => move(0.1), ArrowUp: () => move(-1 / rows), ArrowDown: () => move(1 / rows),
    PageUp: () => move(-1), PageDown: () => move(1), Home: () => view(0, size), End: () => view(size - (high - low), size),
    n: () => select(selected < 0 ? Math.max(after(at, low) - 1, 0) : selected + 1),
    p: () => select(selected < 0 ? Math.max(after(at, high) - 1, 0) : selected - 1),
    Escape: () => { selected = -1; status.textContent = ""; draw(); },
  };
  canvas.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
  const buttons = { in: "+", out: "-", left: "ArrowLeft", right: "ArrowRight", all: "Home" };
  for (const [id, key] of Object.entries(buttons)) document.getElementById(id).addEventListener("click", keys[key]);
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  if (count) draw();
})();
