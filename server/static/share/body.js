// The request of one setting.

const SAMPLING = ["temperature", "top_p", "max_tokens", "seed"];

/**
 * The body of a streamed chat completion. With a `prefix` the answer continues it.
 * @param {{model: string, messages: {role: string, content: string}[], setting: {decoding: Record<string, any>},
 *   sampling?: Record<string, number | null>, trace?: "tokens" | "search" | "both" | null, prefix?: string}} asked
 * @returns {Record<string, any>}
 */
export function body({ model, messages, setting, sampling = {}, trace = null, prefix = "" }) {
  const request = { model, messages: [...messages] };
  for (const name of SAMPLING) {
    if (Number.isFinite(sampling[name])) request[name] = sampling[name];
  }
  request.decoding = trace ? { ...setting.decoding, trace } : { ...setting.decoding };
  if (prefix) {
    request.messages.push({ role: "assistant", content: prefix });
    request.add_generation_prompt = false;
    request.continue_final_message = true;
  }
  request.stream = true;
  request.stream_options = { include_usage: true, include_progress: true };
  if (["tokens", "both"].includes(request.decoding.trace)) request.stream_options.include_trace = true;
  return request;
}
