// A request as text that runs elsewhere.

const PATH = "/v1/chat/completions";
const OPENAI = new Set(["model", "messages", "temperature", "top_p", "max_tokens", "seed", "stream", "stream_options"]);
const WIDTH = 100;

/**
 * The request as a command for a POSIX shell.
 * @param {object} request
 * @param {string} origin of the server
 * @param {boolean} hasKey whether it asks for a key, which is read from TRIMTAB_API_KEY
 * @returns {string}
 */
export function curl(request, origin, hasKey) {
  // A quote as an escape of JSON: nothing inside the shell's quotes then has a meaning to the shell.
  const json = legible(JSON.stringify(request, null, 2)).replaceAll("'", "\\u0027");
  const key = hasKey ? `  -H "authorization: Bearer $TRIMTAB_API_KEY" \\\n` : "";
  return `curl -sN '${origin}${PATH}' -H 'content-type: application/json' \\\n${key}  -d '${json}'\n`;
}

/**
 * The request as a Python program that prints the answer through the OpenAI client.
 * @param {object} request
 * @param {string} origin of the server
 * @param {boolean} hasKey whether it asks for a key, which is read from TRIMTAB_API_KEY
 * @returns {string}
 */
export function python(request, origin, hasKey) {
  const given = Object.entries(JSON.parse(JSON.stringify(request)));
  const known = given.filter(([name]) => OPENAI.has(name));
  const extra = given.filter(([name]) => !OPENAI.has(name));
  if (extra.length) known.push(["extra_body", Object.fromEntries(extra)]);
  const fields = known.map(([name, value]) => `    ${name}=${literal(value, 4, name.length + 1)},\n`);
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=${hasKey ? 'os.environ["TRIMTAB_API_KEY"]' : '"none"'})
stream = client.chat.completions.create(
${fields.join("")})
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()
`;
}

/** A JSON value in Python, on one line where it fits behind `indent` and `before` columns. */
function literal(value, indent, before) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return legible(JSON.stringify(value)); // its escapes mean the same in Python
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const parts = entries(value, indent + 4);
  const line = open + parts.join(", ") + close;
  if (!line.includes("\n") && indent + before + line.length < WIDTH) return line;
  const pad = " ".repeat(indent);
  return `${open}\n${parts.map((part) => `${pad}    ${part},\n`).join("")}${pad}${close}`;
}

function entries(value, indent) {
  if (Array.isArray(value)) return value.map((part) => literal(part, indent, 0));
  return Object.entries(value).map(([name, part]) => {
    const key = `${literal(name, 0, 0)}: `;
    return key + literal(part, indent, key.length);
  });
}

/** Text with escapes for what a terminal or an editor would obey instead of showing. */
function legible(text) {
  return text.replace(
    /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
    (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
