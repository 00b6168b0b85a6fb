// Reads server-sent events: yields {event, data} of each as its blank line comes (HTML standard, 9.2.6).
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (waiting + value).split(/\r?\n\r?\n/);
      waiting = blocks.pop();
      yield* blocks.map(readBlock).filter((event) => event.data !== null);
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops reading wants no more sent
  }
}

function readBlock(block) {
  const fields = block.split(/\r?\n/).map((line) => line.match(/^(event|data): ?(.*)$/));
  const valuesOf = (name) => fields.filter((field) => field?.[1] === name).map((field) => field[2]);
  const data = valuesOf("data");
  return { event: valuesOf("event").at(-1) ?? "message", data: data.length ? data.join("\n") : null };
}
