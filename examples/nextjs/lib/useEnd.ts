"use client";

import { useLayoutEffect, useRef, useState } from "react";

const NEAR_PX = 48;

/** Keeps a scrolled element at its end while its content grows, unless the reader has scrolled back. */
export function useEnd(content: unknown) {
  const ref = useRef<HTMLDivElement>(null);
  const [isAtEnd, setIsAtEnd] = useState(true);
  const toEnd = () => {
    if (ref.current) ref.current.scrollTop = ref.current.scrollHeight;
  };
  useLayoutEffect(() => {
    if (isAtEnd) toEnd();
  }, [content, isAtEnd]);
  const onScroll = () => {
    const { scrollHeight = 0, scrollTop = 0, clientHeight = 0 } = ref.current ?? {};
    setIsAtEnd(scrollHeight - scrollTop - clientHeight < NEAR_PX);
  };
  return { ref, isAtEnd, onScroll, toEnd };
}
