// What this app's server gives to whoever joins a room: a token, and where it opens doors.

export interface Place {
  livekitUrl: string | null;
  stenocastUrl: string;
}

export class Pass {
  #token: string;

  private constructor(
    readonly room: string,
    readonly place: Place,
    token: string,
  ) {
    this.#token = token;
  }

  /** The newest token. */
  get token(): string {
    return this.#token;
  }

  static async ask(room: string, name: string, signal: AbortSignal): Promise<Pass> {
    const answer = await fetch("/api/token", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ room, name }),
      signal,
    });
    // Something else may have answered in its place.
    const { token, error, ...place } = await answer.json().catch(() => ({}));
    if (!token) throw new Error(error ?? `The server of this page answered ${answer.status}.`);
    return new Pass(room, place, token);
  }

  /** A newer token of the same participant; null when there is none any more. */
  async renew(): Promise<string | null> {
    const answer = await fetch("/api/token", { method: "POST", headers: { authorization: `Bearer ${this.#token}` } });
    if (answer.status === 401) return null;
    if (!answer.ok) throw new Error(`the server of this page answered ${answer.status}`);
    this.#token = (await answer.json()).token;
    return this.#token;
  }
}
