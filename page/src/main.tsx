import { render } from "preact";
import { App } from "./app";

const place = document.getElementById("studio");
if (place) {
  place.replaceChildren();
  render(<App />, place);
}
