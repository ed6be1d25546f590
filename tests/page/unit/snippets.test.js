import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { test } from "node:test";

import { body } from "../../../server/static/share/body.js";
import { curl, python } from "../../../server/static/share/snippets.js";
import { listen, sendJson } from "./local_server.js";
import { numbers, oddText } from "./seeded.js";

const ORIGIN = "http://127.0.0.1:8000";
const NASTY = [
  'it\'s $HOME `id` $(id) \\ \\\\ \\n "quoted" !! 100%',
  "line\nline\r\ntab\t nul \0 escape \u001b[31m delete \u007f",
  "' ; echo oops ; '",
  "'''\"\"\" {x} %s \\u0027 \\N{BULLET}",
  "👩‍👩‍👧 🌧 שלום \u202eabc\u2028\u0085",
  "-d @/etc/passwd",
];

function request(content, more = {}) {
  const setting = { decoding: { strategy: "best_of_n", n: 2, reward: "positivity", quiet: true, loud: null } };
  const messages = [
    { role: "system", content: "Be kind." },
    { role: "user", content },
  ];
  return body({ model: "demo", messages, setting, sampling: { temperature: 0.5, seed: 3 }, trace: "tokens", ...more });
}

function everything() {
  const draw = numbers(13);
  return [...NASTY, ...Array.from({ length: 8 }, () => oddText(draw, 60))];
}

/** Runs a program to its end without holding up the server in this process. */
function finished(command, args, env = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    const said = { out: "", err: "" };
    child.stdout.on("data", (data) => (said.out += data));
    child.stderr.on("data", (data) => (said.err += data));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, ...said }));
  });
}

test("bash sends through curl exactly the request", async (t) => {
  const seen = [];
  const origin = await listen(t, ({ path, headers, body: sent }, response) => {
    seen.push([path, headers["content-type"], headers.authorization, JSON.parse(sent)]);
    sendJson(response, {});
  });
  for (const content of everything()) {
    const asked = request(content, { prefix: `It is ${content}` });
    const text = curl(asked, origin, false);
    assert.equal(spawnSync("bash", ["-n"], { input: text }).status, 0);
    const { code, out, err } = await finished("bash", ["-c", text]);
    assert.deepEqual([code, out, err], [0, "{}", ""]);
    assert.deepEqual(seen.pop(), ["/v1/chat/completions", "application/json", undefined, asked]);
  }
});

test("curl reads the key from the environment", async (t) => {
  const seen = [];
  const origin = await listen(t, ({ headers }, response) => {
    seen.push(headers.authorization);
    sendJson(response, {});
  });
  await finished("bash", ["-c", curl(request("Rain?"), origin, true)], { TRIMTAB_API_KEY: "secret-1" });
  assert.deepEqual(seen, ["Bearer secret-1"]);
});

/** Runs the program with an openai package that prints how it was called. */
const STAND_IN = `
import json, sys, types
class OpenAI:
    def __init__(self, **kwargs):
        self.chat = self
        self.completions = self
        self.made = kwargs
    def create(self, **kwargs):
        print(json.dumps([self.made, kwargs]))
        return []
sys.modules["openai"] = types.SimpleNamespace(OpenAI=OpenAI)
exec(compile(sys.argv[1], "snippet", "exec"))
`;

async function called(text, env) {
  const { code, out, err } = await finished("python3", ["-c", STAND_IN, text], env);
  assert.deepEqual([code, err], [0, ""], text);
  return JSON.parse(out);
}

test("Python calls the client with exactly the request", async () => {
  for (const content of everything()) {
    const asked = request(content, { prefix: `It is ${content}` });
    const [made, { extra_body: extra, ...known }] = await called(python(asked, ORIGIN, false), {});
    assert.deepEqual(made, { base_url: `${ORIGIN}/v1`, api_key: "none" });
    assert.deepEqual({ ...known, ...extra }, asked);
    assert.deepEqual(Object.keys(extra).sort(), ["add_generation_prompt", "continue_final_message", "decoding"]);
  }
});

test("Python reads the key from the environment", async () => {
  const [made] = await called(python(request("Rain?"), ORIGIN, true), { TRIMTAB_API_KEY: "secret-1" });
  assert.equal(made.api_key, "secret-1");
});

test("a snippet shows what an editor or a terminal would obey", () => {
  const marks = "\u007f\u0085\u009b\u061c\u200e\u202e\u2066\u2028\ufeff";
  for (const text of [curl(request(marks), ORIGIN, false), python(request(marks), ORIGIN, false)]) {
    for (const mark of marks) assert.ok(!text.includes(mark));
  }
  assert.ok(python(request("👩‍👩‍👧 雨"), ORIGIN, false).includes("👩‍👩‍👧 雨"));
});

test("short values stand on one line, long ones below each other", () => {
  const text = python(request("Rain? ".repeat(20)), ORIGIN, false);
  assert.ok(text.includes('        {"role": "system", "content": "Be kind."},\n'));
  assert.ok(text.includes('        {\n            "role": "user",\n'));
  assert.ok(text.includes('    extra_body={\n        "decoding": {'));
  assert.ok(text.includes('"quiet": True'));
  assert.ok(text.includes('"loud": None'));
});
