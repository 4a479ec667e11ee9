/* A page that is read from a disk may start no Worker. The search's then runs in a hidden frame of the page:
   this class has the part of Worker's interface that the theme uses, under the name that it looks for. */
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.body.appendChild(document.createElement("iframe"));
    this.frame.hidden = true;
    const inner = this.frame.contentWindow;
    inner.document.open();
    inner.document.write("<!doctype html><body></body>");
    inner.document.close();
    inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    inner.importScripts = (...urls) =>
      urls.reduce((before, next) => before.then(() => IFrameWorker.load(inner.document, next)), Promise.resolve());
    this.ready = IFrameWorker.load(inner.document, url);
  }

  static load(document, url) {
    const script = document.createElement("script");
    script.src = url;
    return new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${url} cannot be loaded`));
      document.body.append(script);
    });
  }

  postMessage(data) {
    this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") Object.assign(window, { IFrameWorker, Worker: IFrameWorker });
