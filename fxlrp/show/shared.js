// What the pages of pictures and of texts have in common: two maps of colours, numbers, elements.
var fx = {
  stops: {
    'red-blue': [[33, 77, 217], [255, 255, 255], [219, 20, 26]],
    // cividis, dark to light: it can be read whatever colours one tells apart
    lightness: [[0, 34, 78], [64, 77, 107], [124, 123, 120], [187, 175, 113], [254, 232, 56]]
  },
  // t in −1…1
  colour: function (palette, t) {
    var list = fx.stops[palette], at = (Math.max(-1, Math.min(1, t)) + 1) / 2 * (list.length - 1);
    var i = Math.min(list.length - 2, Math.floor(at)), f = at - i;
    return [0, 1, 2].map(function (c) { return Math.round(list[i][c] * (1 - f) + list[i + 1][c] * f); });
  },
  // the map's end on white paper, the stronger the larger |t|: for the ground of a word
  tint: function (palette, t) {
    var strength = Math.pow(Math.min(Math.abs(t), 1), 0.7) * 0.85, end = fx.colour(palette, t < 0 ? -1 : 1);
    return end.map(function (c) { return Math.round(255 + (c - 255) * strength); });
  },
  css: function (rgb) { return 'rgb(' + rgb.join(',') + ')'; },
  // black or white, whichever can be read on a colour
  ink: function (rgb) { return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 115 ? '#fff' : '#111'; },
  bar: function (colour) {
    return 'linear-gradient(90deg,' + [-1, -.75, -.5, -.25, 0, .25, .5, .75, 1].map(colour).join(',') + ')';
  },
  said: function (v) {
    return (v && Math.abs(v) < 1e-3 ? v.toExponential(2) : v.toPrecision(3)).replace(/-/g, '−');
  },
  make: function (name, parent, text, ns) {
    var e = ns ? document.createElementNS(ns, name) : document.createElement(name);
    if (text !== undefined) e.textContent = text;
    if (parent) parent.appendChild(e);
    return e;
  },
  list: function (list, words) {
    list.textContent = '';
    words.forEach(function (w) { fx.make('li', list, w); });
  }
};
