// Search where the pages are opened from disk: browsers start no Worker there, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      this.ready = new Promise(resolve => { script.onload = resolve; });
      this.post = data => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      script.src = url;
      inside.document.body.append(script);
    }
    postMessage(data) { this.ready.then(() => this.post(data)); }
  };
}
