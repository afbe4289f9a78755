import { JoinForm } from "@/components/JoinForm";

export default function Page() {
  return <JoinForm />;
}
