// Starts the page.

import { html, render } from "./lib/preact.js";
import { Api } from "./net/api.js";
import { App } from "./views/app.js";
import { applyTheme } from "./views/theme.js";

applyTheme();
const page = document.getElementById("page");
page.replaceChildren();
render(html`<${App} api=${new Api()} />`, page);
