(function (root) {
  var d = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  var now = { view: 0, palette: 'red-blue', opacity: 0.85, threshold: 0 };
  function find(what) { return root.querySelector(what); }
  function all(what) { return [].slice.call(root.querySelectorAll(what)); }
  var make = fx.make, said = fx.said;
  function colour(t) { return fx.colour(now.palette, t); }
  function css(t) { return fx.css(colour(t)); }

  // a map of w × h entries, stored as a grey picture: 128 is zero, the distance from it the root of |relevance|
  function values(map, then) {
    if (map.read) { then(map.read); return; }
    if (map.values) { map.read = map.values; then(map.read); return; }
    var image = new Image();
    image.onload = function () {
      var c = document.createElement('canvas');
      c.width = image.width;
      c.height = image.height;
      var context = c.getContext('2d', { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      var pixels = context.getImageData(0, 0, c.width, c.height).data;
      map.read = new Float32Array(pixels.length / 4);
      for (var i = 0; i < map.read.length; i++) {
        var b = (pixels[4 * i] - 128) / 127;
        map.read[i] = b * Math.abs(b) * map.most;
      }
      then(map.read);
    };
    image.src = map.png;
  }

  function paint(canvas, map, w, h, flat) {
    values(map, function (r) {
      canvas.width = w;
      canvas.height = h;
      var context = canvas.getContext('2d'), pixels = context.createImageData(w, h);
      for (var i = 0; i < r.length; i++) {
        var t = Math.max(-1, Math.min(1, r[i] / map.top)), rgb = colour(t), size = Math.abs(t);
        var alpha = flat ? 1 : now.opacity >= 1 ? 1 : Math.pow(size, 0.6) * now.opacity;
        if (!flat && size < now.threshold) alpha = 0;
        pixels.data.set([rgb[0], rgb[1], rgb[2], Math.round(255 * alpha)], 4 * i);
      }
      context.putImageData(pixels, 0, 0);
      canvas.setAttribute('data-painted', now.view);
    });
  }

  function picture(box, input, map) {
    var frame = box.querySelector('.picture');
    if (!frame) {
      frame = make('div', box);
      frame.className = 'picture';
      frame.style.aspectRatio = input.width + ' / ' + input.height;
      make('img', frame).src = input.picture;
      var plain = make('img', box);
      plain.className = 'plain';
      plain.alt = 'the input, as it is';
      plain.src = input.picture;
      var canvas = make('canvas', frame);
      canvas.setAttribute('role', 'img');
      if (input.w < 64) canvas.className = 'coarse';
      canvas.addEventListener('mousemove', function (e) {
        var m = d.views[now.view].maps[d.inputs.indexOf(input)], place = canvas.getBoundingClientRect();
        var x = Math.min(input.w - 1, Math.floor((e.clientX - place.left) / place.width * input.w));
        var y = Math.min(input.h - 1, Math.floor((e.clientY - place.top) / place.height * input.h));
        if (m.read) find('.value').textContent = 'row ' + y + ', column ' + x + ': ' + said(m.read[y * input.w + x]);
      });
      canvas.addEventListener('mouseleave', function () { find('.value').textContent = ''; });
    }
    frame.querySelector('img').alt = 'the input';
    frame.classList.toggle('bare', now.opacity === 0);
    var top = frame.querySelector('canvas');
    top.setAttribute('aria-label', map.words.join('; '));
    paint(top, map, input.w, input.h, false);
  }

  function curves(box, input, map) {
    var r = map.values, W = 1000, H = 90, n = input.values[0].length;
    map.rows.forEach(function (row) {
      var v = input.values[row], low = Math.min.apply(null, v), high = Math.max.apply(null, v), wide = high - low || 1;
      var points = v.map(function (y, i) { return [i / Math.max(1, n - 1) * W, H - 5 - (y - low) / wide * (H - 10)]; });
      var ns = 'http://www.w3.org/2000/svg', svg = document.createElementNS(ns, 'svg');
      svg.setAttribute('viewBox', '0 0 ' + W + ' ' + H);
      svg.setAttribute('role', 'img');
      svg.setAttribute('aria-label', 'curve ' + row);
      points.forEach(function (p, i) {
        var next = points[i + 1] || p, last = points[i - 1] || p;
        var bar = document.createElementNS(ns, 'rect'), t = r[row][i] / map.top;
        bar.setAttribute('x', (last[0] + p[0]) / 2);
        bar.setAttribute('width', Math.max(0.5, (next[0] - last[0]) / 2));
        bar.setAttribute('y', 0);
        bar.setAttribute('height', H);
        bar.setAttribute('fill', css(t));
        bar.setAttribute('opacity', Math.abs(t) < now.threshold ? 0 : now.opacity);
        var title = document.createElementNS(ns, 'title');
        title.textContent = 'time ' + input.times[i] + ': value ' + said(v[i]) + ', relevance ' + said(r[row][i]);
        bar.appendChild(title);
        svg.appendChild(bar);
      });
      var line = document.createElementNS(ns, 'polyline');
      line.setAttribute('points', points.map(function (p) { return p.join(','); }).join(' '));
      line.setAttribute('class', 'line');
      line.setAttribute('style', 'stroke:#111;stroke-width:1.5');
      svg.appendChild(line);
      make('div', box, 'curve ' + row).className = 'soft';
      box.appendChild(svg);
    });
  }

  function features(box, input, map) {
    var grid = make('div', box);
    grid.className = 'bars';
    map.rows.forEach(function (i) {
      var r = map.values[i], share = 50 * Math.abs(r) / map.most;
      make('span', grid, input.labels[i]);
      var lane = make('span', grid), bar = make('i', lane);
      lane.className = 'lane';
      bar.style.background = css(r / map.most);
      bar.style.outline = '1px solid #999';
      bar.style.left = (r < 0 ? 50 - share : 50) + '%';
      bar.style.width = share + '%';
      make('output', grid, said(r));
    });
  }

  function graph(box, input, map) {
    var ns = 'http://www.w3.org/2000/svg', svg = document.createElementNS(ns, 'svg'), W = 600, R = 10;
    function place(i) { return input.values[i].map(function (v) { return R + 4 + v * (W - 2 * R - 8); }); }
    function add(name, about, text) {
      var e = make(name, svg, text, ns);
      Object.keys(about).forEach(function (k) { e.setAttribute(k, about[k]); });
      return e;
    }
    svg.setAttribute('viewBox', '0 0 ' + W + ' ' + W);
    svg.setAttribute('class', 'graph');
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', map.words.join('; '));
    function titled(e, text) { make('title', e, text, ns); }
    var ofNodes = input.kind === 'nodes', sums = input.edges.map(function (e) {
      return e.slice(2).reduce(function (sum, i) { return sum + map.values[i]; }, 0);
    });
    var top = map.top = ofNodes ? map.top : Math.max.apply(null, sums.map(Math.abs)) || 1;
    input.edges.forEach(function (e, i) {
      var a = place(e[0]), b = place(e[1]), about = { x1: a[0], y1: a[1], x2: b[0], y2: b[1], stroke: '#bbb' };
      if (ofNodes) { add('line', about); return; }
      var t = sums[i] / top, wide = 2 + 8 * Math.abs(t);
      add('line', Object.assign({ 'stroke-width': wide + 1.5 }, about));
      about['stroke-width'] = wide;
      about.stroke = Math.abs(t) < now.threshold ? '#fff' : css(t);
      titled(add('line', about), input.nodes[e[0]] + ' – ' + input.nodes[e[1]] + ': ' + said(sums[i]));
    });
    input.values.forEach(function (_, i) {
      var p = place(i), n = input.nodes[i], t = ofNodes ? map.values[n] / top : 0, faint = Math.abs(t) < now.threshold;
      var fill = !ofNodes || faint ? '#fff' : css(t), name = input.labels[i];
      var node = add('circle', { cx: p[0], cy: p[1], r: R, fill: fill, stroke: '#666' });
      titled(node, ofNodes ? name + ': ' + said(map.values[n]) : name);
      if (!ofNodes || map.rows.indexOf(n) >= 0) {
        var dark = Math.abs(t) > 0.5 && now.palette === 'red-blue' && !faint;
        add('text', { x: p[0], y: p[1], fill: dark ? '#fff' : '#111' }, name.replace(/^node /, ''));
      }
    });
    box.appendChild(svg);
  }

  var several = d.inputs.length > 1, drawn = { picture: picture, curves: curves, features: features, nodes: graph, edges: graph };
  function show() {
    var view = d.views[now.view];
    find('h1').textContent = 'why ' + view.title + '?';
    find('.asked').textContent = [view.against, view.rules].filter(Boolean).join(' · ');
    d.inputs.forEach(function (input, i) {
      var box = all('.inputs figure')[i], map = view.maps[i];
      if (input.kind !== 'picture') box.textContent = '';
      drawn[input.kind](box, input, map);
      if (!several) return;
      var caption = box.querySelector('figcaption') || make('figcaption', box);
      caption.textContent = input.name + ': colours up to ' + said(map.top);
      box.insertBefore(caption, box.firstChild);
    });
    all('.end').forEach(function (e, i) { e.textContent = several ? '' : said((2 * i - 1) * view.maps[0].top); });
    find('.bar').style.background = fx.bar(css);
    fx.list(find('.words'), [].concat.apply([], view.maps.map(function (m, i) {
      return several ? m.words.map(function (w) { return d.inputs[i].name + ', ' + w; }) : m.words;
    })));
    var inside = find('.inside');
    inside.textContent = '';
    view.inside.forEach(function (m) {
      var f = make('figure', inside);
      paint(make('canvas', f), m, m.w, m.h, true);
      make('figcaption', f, m.name).className = 'soft';
    });
    find('.layers').hidden = !view.inside.length;
    all('button[data-kind]').forEach(function (b) {
      b.setAttribute('aria-pressed', String(view[b.getAttribute('data-kind')] === b.value));
    });
    root.setAttribute('data-shown', now.view);
  }

  // a button asks for one thing; of the views that answer it, the one that is most like the one shown
  function choose(kind, value) {
    var here = d.views[now.view], best = -1, at = now.view;
    d.views.forEach(function (v, i) {
      if (v[kind] !== value) return;
      var same = ['name', 'against', 'rules'].filter(function (k) { return k !== kind && v[k] === here[k]; }).length;
      if (same > best) { best = same; at = i; }
    });
    now.view = at;
    show();
  }
  ['name', 'against', 'rules'].forEach(function (kind) {
    var row = find('[data-row="' + kind + '"]'), seen = [];
    d.views.forEach(function (v) { if (seen.indexOf(v[kind]) < 0) seen.push(v[kind]); });
    if (seen.length < 2) { row.previousElementSibling.hidden = row.hidden = true; return; }
    seen.forEach(function (value) {
      var b = make('button', row, value || 'no contrast');
      b.value = value;
      b.setAttribute('data-kind', kind);
      b.addEventListener('click', function () { choose(kind, value); });
    });
  });
  all('input[type=range]').forEach(function (e) {
    e.addEventListener('input', function () { now[e.name] = e.value / 100; show(); });
  });
  find('select').addEventListener('change', function (e) { now.palette = e.target.value; show(); });
  show();
})
