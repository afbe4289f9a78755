export function Problem({ text, again }: { text: string; again: () => void }) {
  return (
    <div className="problem" role="alert">
      <span dir="auto">{text}</span> <button type="button" onClick={again}>Try again</button>
    </div>
  );
}
