/** A picture of the service. */

import { useLoadable } from "../api/pictures";

interface Props {
  path: string | null | undefined;
  alt: string;
  class?: string;
  width?: number;
  height?: number;
  lazy?: boolean;
}

export function Shown(props: Props) {
  const url = useLoadable(props.path);
  if (!url) return <span class={`picture-wait ${props.class ?? ""}`} role="img" aria-label={props.alt} />;
  return (
    <img
      class={`picture ${props.class ?? ""}`} src={url} alt={props.alt} width={props.width} height={props.height}
      loading={props.lazy ? "lazy" : "eager"} decoding="async" draggable={false}
    />
  );
}
