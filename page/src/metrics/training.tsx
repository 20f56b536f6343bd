/** Loss and gradient norm of a training: the log that `undertow train` writes, which never leaves the browser. */

import { useState } from "preact/hooks";

import { seconds } from "../state/clock";
import { Line } from "../ui/bars";
import { Drop } from "../ui/drop";

interface Step {
  step: number;
  loss: number;
  gradient_norm: number;
  learning_rate: number;
  images_per_second: number;
  seconds: number;
}

const NUMBERS = ["step", "loss", "gradient_norm", "learning_rate", "images_per_second", "seconds"] as const;
const POINTS = 400;

export function TrainingPanel() {
  const [named, setNamed] = useState("");
  const [steps, setSteps] = useState<Step[]>([]);
  const [problem, setProblem] = useState("");
  const read = async (file: File) => {
    const found = stepsOf(await file.text());
    setNamed(file.name);
    setSteps(found);
    setProblem(found.length ? "" : `${file.name} holds no step of a training; choose the log.jsonl of its folder.`);
  };
  const last = steps.at(-1);
  return (
    <section class="panel" aria-labelledby="training-title">
      <h2 id="training-title">Training</h2>
      <Drop label="Open the log.jsonl of a training" accept=".jsonl" take={(file) => void read(file)} />
      {problem && <p role="alert">{problem}</p>}
      {last && (
        <>
          <p class="hint">{named}: step {last.step}, {seconds(last.seconds)} of training, {last.images_per_second.toPrecision(3)} images a second.</p>
          <div class="bars">
            <Curve label="Loss" values={steps.map((one) => one.loss)} />
            <Curve label="Gradient norm" values={steps.map((one) => one.gradient_norm)} />
            <Curve label="Learning rate" values={steps.map((one) => one.learning_rate)} />
          </div>
        </>
      )}
    </section>
  );
}

function Curve(props: { label: string; values: number[] }) {
  return (
    <div class="bar-row">
      <span class="bar-label">{props.label}</span>
      <Line label={props.label} values={thinned(props.values)} />
      <span class="bar-text">now {props.values.at(-1)!.toPrecision(3)}</span>
    </div>
  );
}

/** Of steps that a resumed run did again the last counts; a line that was being written is left out. */
function stepsOf(text: string): Step[] {
  const found = new Map<number, Step>();
  for (const line of text.split("\n")) {
    try {
      const one = JSON.parse(line) as Step;
      if (NUMBERS.every((name) => typeof one[name] === "number")) found.set(one.step, one);
    } catch {
      continue;
    }
  }
  return [...found.values()].sort((one, other) => one.step - other.step);
}

/** Means of neighbors, as many as a line can show. */
function thinned(values: number[]): number[] {
  const each = Math.ceil(values.length / POINTS);
  const found: number[] = [];
  for (let at = 0; at < values.length; at += each) {
    const part = values.slice(at, at + each);
    found.push(part.reduce((sum, one) => sum + one, 0) / part.length);
  }
  return found;
}
