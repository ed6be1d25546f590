// Components that are drawn again only when they are given something new.

import { Component, h } from "../lib/preact.js";

/**
 * Wrap a function component: while all of its props are the same objects, it is left as it is.
 * @param {(props: any) => any} view
 */
export function memo(view) {
  return class extends Component {
    shouldComponentUpdate(next) {
      const names = new Set([...Object.keys(this.props), ...Object.keys(next)]);
      return [...names].some((name) => this.props[name] !== next[name]);
    }

    render(props) {
      return h(view, props);
    }
  };
}
