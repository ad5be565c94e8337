// The server's API: JSON, problems as errors, and jobs followed by server-sent events.

export class Problem extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function call(method, path, { body, signal } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const answer = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Problem(answer.status, told.detail ?? `The server answered ${answer.status}.`, Number(answer.headers.get("Retry-After")) || 1);
  }
  return { status: answer.status, value: told };
}

export const get = async (path, signal) => (await call("GET", path, { signal })).value;

export const pathOf = (...parts) => "/v1/" + parts.map(encodeURIComponent).join("/");

// Calls `onJob` at each change until all jobs are over. Fetch and not EventSource: an abort is then enough to stop.
export async function follow(jobs, onJob, signal) {
  let left = jobs;
  while (left.length) {
    const query = left.slice(0, 32).map((job) => `job=${job}`).join("&");
    const answer = await fetch(`/v1/events?${query}`, { signal });
    if (!answer.ok) throw new Problem(answer.status, "The cards could not be followed.", 1);
    const over = new Set();
    for await (const data of events(answer.body)) {
      onJob(data);
      if (!["queued", "running"].includes(data.state)) over.add(data.id);
    }
    left = left.filter((job) => !over.has(job));
    if (left.length) await new Promise((go) => setTimeout(go, 500));
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n");
      if (lines[0] === "event: job") yield JSON.parse(lines[1].slice("data: ".length));
    }
  }
}
